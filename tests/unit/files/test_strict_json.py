"""JSON and model files that say what nobody meant, refused with the place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.shape import size_problems
from herl_megatron.files.strict_json import check_values, parse_json, read_object


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' is given twice in one object, with 2 and"),
        ('{"a": NaN}', r"NaN is no number of JSON\); write null"),
        ("[-Infinity]", "-Infinity is no number of JSON"),
        ("[" * 5_000, "nested too deep"),
        ("9" * 5_000, "thousands of digits"),
        ('{"a": }', r"at column 7\); mend it"),
        ('{\n"a": }', r"at line 2 column 6\); mend it"),
    ],
)
def test_what_python_reads_or_fails_at_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)
    assert parse_json('{"a": [{"b": 1}, {"b": 1e3}]}') == {"a": [{"b": 1}, {"b": 1000.0}]}


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": ["x", {"b": "it is \ud83d"}]}, r"^a\[1\]\.b holds half a character at position 7"),
        ({"a\udc00": 1}, "^a key of the row holds half a character at position 2"),
        ({"a": {"\ud83d": 1}}, "^a key of a holds half a character"),
        ({"a": [1, 2**64]}, r"^a\[1\] is a whole number of 65 bits"),
        ({"a": nested(101)}, "nested more than 100 levels deep"),
    ],
)
def test_the_place_of_a_value_that_is_none_is_named(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_values(value, "row")


def test_whole_characters_and_numbers_are_taken() -> None:
    check_values({"a": ["\U0001f600", 2**64 - 1, -5, 1e300, None, nested(90)]}, "row")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff{}", "is not valid JSON: 'utf-8' codec"),
        (b"null", "holds None, not an object"),
        (b"[1]", r"holds \[1\], not an object"),
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[" * 5_000, "is not valid JSON: maximum recursion"),
    ],
)
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "generation_config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} {said}.*download or copy it again"):
        read_object(file)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="folder.json cannot be read: no file but a folder"):
        read_object(tmp_path / "folder.json")


SHAPE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "architectures": ["Qwen2ForCausalLM"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "hidden_size is None; it must be a whole number from 1"),
        ({"vocab_size": "151936"}, "vocab_size is '151936'; it must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be a whole number from 1"),
        ({"intermediate_size": 10**19}, "intermediate_size is 1000.*to 2147483647"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"max_position_embeddings": 1.5}, "max_position_embeddings is 1.5"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads"),
        ({"hidden_size": 66}, "hidden_size 66 is no multiple of num_attention_heads 4"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be a number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be an object"),
        ({"tie_word_embeddings": "true"}, "tie_word_embeddings is 'true'; it must be true or"),
        ({"dtype": 16}, "dtype is 16; it must be a text"),
        ({"architectures": "Qwen2ForCausalLM"}, "architectures is 'Qwen2ForCausalLM'; it must be"),
    ],
)
def test_sizes_that_no_model_can_have(changes: dict[str, Any], said: str) -> None:
    assert list(size_problems(SHAPE)) == []
    (problem,) = size_problems(SHAPE | changes)
    assert re.search(said, problem), problem


def test_what_a_model_may_leave_open_is_no_problem() -> None:
    open_ones = {"num_key_value_heads": None, "head_dim": None, "sliding_window": None}
    assert list(size_problems(SHAPE | open_ones | {"rope_theta": None, "rope_scaling": None})) == []
    off = {"use_sliding_window": False, "sliding_window": -1}
    assert list(size_problems(SHAPE | off)) == []
    assert list(size_problems({"model_type": "llama"})) == []
