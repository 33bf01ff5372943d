"""What surrounds a response: end tokens, template with arguments and date, the right tokenizer."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from herl_megatron.config.schema import DataConfig, ModelConfig
from herl_megatron.data.chat import ChatTokenizer, open_chat_tokenizer
from herl_megatron.data.chat_template import reads_date
from herl_megatron.data.serving import read_serving_facts, write_serving_facts
from herl_megatron.types import Message
from tests.unit.data.small_tokenizers import CHATML, byte_level, change_json, save


def complete_serving_files(source: Path, folder: Path) -> None:
    if (facts := read_serving_facts(source)) is not None:
        write_serving_facts(facts, folder)


def ids_of(path: str, *tokens: str) -> tuple[int, ...]:
    tokenizer = Tokenizer.from_file(f"{path}/tokenizer.json")
    found = [tokenizer.token_to_id(token) for token in tokens]
    return tuple(number for number in found if number is not None)


def test_a_turn_end_that_is_special_only_among_added_tokens(tmp_path: Path) -> None:
    """huggingface/trl#2059: a base model with a ChatML template ran on after every turn."""
    path = save(tmp_path, byte_level(), eos_token="<|endoftext|>")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|endoftext|>" and "<|im_end|>" not in str(config.get("extra"))
    tokenizer = ChatTokenizer(path)
    assert tokenizer.end_token_ids == ids_of(path, "<|im_end|>", "<|endoftext|>")
    _, response = tokenizer.training_ids([Message("user", "q"), Message("assistant", "a")])
    assert response[-1:].tolist() == list(ids_of(path, "<|im_end|>"))


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHATML.replace("<|im_end|>", " \n<|im_end|>"), ("<|im_end|>", "<|endoftext|>")),
        # GLM-4: nothing closes a turn but what opens the next one.
        ("{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
         "{% if add_generation_prompt %}<|assistant|>{% endif %}",
         ("<|user|>", "<|endoftext|>")),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
         ("<|endoftext|>",)),
        ("{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
         "{% else %}<|user|>{{ m['content'] | upper }}{% endif %}{% endfor %}",
         ("<|endoftext|>",)),
        # The answer's text is not shown as it is.
        ("{% for m in messages %}<|user|>{{ m['content'] | upper }}<|im_end|>{% endfor %}",
         ("<|endoftext|>",)),
    ],
)  # fmt: skip
def test_the_end_of_a_turn_in_templates(
    tmp_path: Path, template: str, ends: tuple[str, ...]
) -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>")
    path = save(
        tmp_path, byte_level(), template=template, special=special, eos_token="<|endoftext|>"
    )
    assert ChatTokenizer(path).end_token_ids == ids_of(path, *ends)


def test_a_server_learns_all_ends(tmp_path: Path) -> None:
    path = save(tmp_path, byte_level(), eos_token="<|endoftext|>")
    end, eos = ids_of(path, "<|im_end|>", "<|endoftext|>")
    config = tmp_path / "generation_config.json"
    change_json(config, eos_token_id=eos, temperature=0.7)
    complete_serving_files(tmp_path, tmp_path)
    assert json.loads(config.read_text()) == {"eos_token_id": [end, eos], "temperature": 0.7}
    assert ChatTokenizer(path).end_token_ids == (end, eos)


def test_a_server_of_a_model_without_generation_config_or_template(tmp_path: Path) -> None:
    path = save(tmp_path / "a", byte_level(), eos_token="<|im_end|>")
    complete_serving_files(tmp_path / "a", tmp_path)
    config = tmp_path / "generation_config.json"
    assert json.loads(config.read_text()) == {"eos_token_id": ids_of(path, "<|im_end|>")[0]}
    config.unlink()
    save(tmp_path / "b", byte_level(), template="", eos_token="<|im_end|>")
    complete_serving_files(tmp_path / "b", tmp_path)
    assert not config.exists()


TEXT = "  Two  words,\n\n\tand d\u00e9j\u00e0 vu."


@pytest.mark.parametrize("model", ["llama", "qwen2", "mistral"])
def test_a_byte_level_tokenizer_of_a_rebuilt_class_is_loaded_as_its_file_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    """huggingface/transformers#48206: every space vanished."""
    path = save(tmp_path, byte_level(("Two", "words")), eos_token="<|endoftext|>")
    classes = {
        "llama": "LlamaTokenizerFast",
        "qwen2": "Qwen2Tokenizer",
        "mistral": "LlamaTokenizer",
    }
    change_json(tmp_path / "tokenizer_config.json", tokenizer_class=classes[model])
    change_json(tmp_path / "config.json", model_type=model)
    written = Tokenizer.from_file(f"{path}/tokenizer.json")
    with caplog.at_level(logging.WARNING):
        tokenizer = ChatTokenizer(path)
    ids = tokenizer.plain_ids(TEXT)
    assert ids.tolist() == written.encode(TEXT).ids
    assert tokenizer.decode(ids) == TEXT
    prompt = tokenizer.prompt_ids([Message("user", "Two words")])
    assert tokenizer.decode(prompt) == "user\nTwo words\nassistant\n"
    out = tmp_path / "policy"
    out.mkdir()
    for file in list(tmp_path.glob("*.json")) + list(tmp_path.glob("*.jinja")):
        (out / file.name).write_bytes(file.read_bytes())
    complete_serving_files(tmp_path, out)
    if model == "llama":
        assert "the file is what counts" in caplog.text
        assert '"PreTrainedTokenizerFast"' in (out / "tokenizer_config.json").read_text()
    caplog.clear()
    again = ChatTokenizer(str(out))
    assert again.plain_ids(TEXT).tolist() == ids.tolist() and not caplog.records


THINKING = CHATML.replace(
    "assistant\n{%",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{%",
)
"""As Qwen3's: it thinks unless it is told not to."""
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML


def test_arguments_of_the_template_reach_prompts_and_supervised_rows(tmp_path: Path) -> None:
    path = save(tmp_path, byte_level(), template=THINKING, eos_token="<|endoftext|>")
    row = [Message("user", "q"), Message("assistant", "a")]
    asked = ChatTokenizer(path)
    assert asked.decode(asked.prompt_ids(row[:1])) == "user\nq\nassistant\n"
    model, data = ModelConfig(path=path), DataConfig(chat_template_args={"enable_thinking": False})
    told = open_chat_tokenizer(model, data)
    for ids in (told.prompt_ids(row[:1]), told.training_ids(row)[0]):
        assert told.decode(ids) == "user\nq\nassistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("enable_thinkin", "never reads 'enable_thinkin'.*did you mean 'enable_thinking'"),
        ("zzz", "never reads 'zzz', so it would change nothing; take it out"),
        ("messages", "'messages' is set by herl or the tokenizer"),
        ("eos_token", "'eos_token' is set by"),
    ],
)
def test_arguments_that_the_template_does_not_have_are_refused(
    tmp_path: Path, name: str, said: str
) -> None:
    path = save(tmp_path, byte_level(), template=THINKING, eos_token="<|endoftext|>")
    with pytest.raises(ValueError, match=rf"data\.chat_template_args: .*{said}"):
        ChatTokenizer(path, arguments={name: 1})


def test_a_date_in_the_template_is_the_runs(tmp_path: Path) -> None:
    path = save(tmp_path, byte_level(), template=DATED, eos_token="<|endoftext|>")
    assert reads_date(path)
    tokenizer = ChatTokenizer(path, date="2025-02-03")
    text = tokenizer.decode(tokenizer.prompt_ids([Message("user", "q")]))
    assert text == "03 Feb 2025\nuser\nq\nassistant\n"
    (tmp_path / "chat_template.jinja").unlink()
    assert not reads_date(path)
    change_json(tmp_path / "tokenizer_config.json", chat_template=DATED)
    assert reads_date(path)
