"""The prompt/response boundary, on small tokenizers written for the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from herl_megatron.commands.sft import to_token_row
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.prompt_source import SftRow, check_prompt_lengths
from herl_megatron.types import Criterion, Message, Prompt, Rubric
from tests.unit.data.small_tokenizers import byte_level, save

WORDS = ["[UNK]", "<eos>", "<end>", "<user>", "<assistant>", "say", "hi", "ho", "herl", "text"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(
    folder: Path, *, template: str | None = TEMPLATE, special: Any = None, **tokens: str
) -> str:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = ["<end>", "<user>", "<assistant>"] if special is None else special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        chat_template=template,
        extra_special_tokens=extra,
        **tokens,
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_prompt_and_response_ids(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, eos_token="<eos>"))
    ids = tokenizer.prompt_ids([Message("user", "say hi")])
    np.testing.assert_array_equal(ids, [3, 5, 6, 2, 4])  # <user> say hi <end> <assistant>
    assert ids.dtype == np.int32
    context, response = tokenizer.training_ids([Message("user", "say"), Message("assistant", "hi")])
    np.testing.assert_array_equal(context, [3, 5, 2, 4])
    np.testing.assert_array_equal(response, [6, 2])  # the template's turn end, not <eos>
    assert tokenizer.decode(np.array([4, 6, 7, 2], dtype=np.int32)) == "hi ho"
    np.testing.assert_array_equal(tokenizer.plain_ids("say ho"), [5, 7])
    assert tokenizer.vocab_size == len(WORDS)


def test_what_follows_an_answer_is_what_the_template_writes_there(tmp_path: Path) -> None:
    """Prompt, answer and reply make up the prompt of the whole conversation."""
    tokenizer = ChatTokenizer(save(tmp_path, byte_level(("say", "hi")), eos_token="<|endoftext|>"))
    asked, answered = Message("user", "say hi"), Message("assistant", "hi.")
    context, response = tokenizer.training_ids([asked, answered])
    for told in ([Message("user", "again")], [Message("user", "<|im_end|>"), Message("user", "x")]):
        whole = tokenizer.prompt_ids([asked, answered, *told])
        reply = tokenizer.reply_ids(told, ended=True)
        np.testing.assert_array_equal(np.concatenate([context, response, reply]), whole)
        assert reply.dtype == np.int32
        # A turn that was cut has no end token: the reply begins with it.
        cut = tokenizer.reply_ids(told, ended=False)
        np.testing.assert_array_equal(np.concatenate([context, response[:-1], cut]), whole)


def test_a_template_that_never_ends_a_turn_says_nothing_after_it(tmp_path: Path) -> None:
    endless = TEMPLATE.replace(" <end> ", "{{ ' <end> ' if m['role'] == 'user' else ' text ' }}")
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, template=endless, eos_token="<end>"))
    with pytest.raises(ValueError, match="does not close an assistant's turn .* `tell_ids`"):
        tokenizer.reply_ids([Message("user", "say")], ended=True)


def test_end_tokens_are_the_turn_end_then_those_of_tokenizer_and_generation_config(
    tmp_path: Path,
) -> None:
    path = write_tokenizer(tmp_path, eos_token="<eos>")
    assert ChatTokenizer(path).end_token_ids == (2, 1)
    assert ChatTokenizer(path).pad_token_id == 2
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9]}))
    assert ChatTokenizer(path).end_token_ids == (2, 1, 9)


def test_turn_end_that_is_no_special_token_does_not_end_responses(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, special=["<user>", "<assistant>"], eos_token="<eos>")
    assert ChatTokenizer(path).end_token_ids == (1,)


def test_missing_template_end_token_or_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "a", template=None, eos_token="<eos>")
    with pytest.raises(ValueError, match="no chat template; add chat_template.jinja"):
        ChatTokenizer(path)
    path = write_tokenizer(tmp_path / "b", special=["<user>"])
    with pytest.raises(ValueError, match="no end token.*set eos_token"):
        ChatTokenizer(path)
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        ChatTokenizer(str(tmp_path / "c"))


def test_training_row_must_end_with_the_assistant(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, eos_token="<eos>"))
    with pytest.raises(ValueError, match="must be the assistant's"):
        tokenizer.training_ids([Message("user", "say")])


def test_prompts_over_the_limit_are_named(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, eos_token="<eos>"))
    rubric = Rubric((Criterion("c", "rule", check="ifeval/punctuation:no_comma"),))
    prompts = [
        Prompt(f"p{n}", (Message("user", "hi " * n),), rubric) for n in (1, 4, 2)
    ]  # 3 tokens around the content
    check_prompt_lengths(prompts, tokenizer, 7)
    with pytest.raises(ValueError, match=r"2 of 3 .*=4: p4 \(7 tokens\), p2 .*raise .* to 7"):
        check_prompt_lengths(prompts, tokenizer, 4)


def test_tokenizer_that_transformers_rebuilds_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tokenizer(tmp_path, eos_token="<eos>")
    ChatTokenizer(path)
    assert not caplog.records
    # Whole words without merges: with a Qwen2 model beside it, transformers 5 rebuilds the
    # tokenizer from vocabulary and merges, and "Write" falls apart into letters.
    vocab = {chr(i): i for i in range(33, 127)} | {"Write": 127}
    word_level = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=word_level, eos_token="!", chat_template=TEMPLATE
    ).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    ChatTokenizer(path)
    assert "tokenizer.json" in caplog.text and "tokenizer_class" in caplog.text


REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    + TEMPLATE
)


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, template=REFUSES_SYSTEM, eos_token="<eos>")
    tokenizer = ChatTokenizer(path)
    rubric = Rubric((Criterion("c", "rule", check="ifeval/punctuation:no_comma"),))
    turns = (Message("system", "say"), Message("user", "hi"))
    prompts = [Prompt("fine", turns[1:], rubric), Prompt("strict", turns, rubric)]
    said = "prompt 'strict': the chat template refuses messages of system, user: No system role"
    with pytest.raises(ValueError, match=said):
        check_prompt_lengths(prompts, tokenizer, 99)
    row = SftRow("rows.jsonl:7", (*turns, Message("assistant", "ho")))
    with pytest.raises(ValueError, match="^rows.jsonl:7: the chat template refuses messages of"):
        to_token_row(row, tokenizer, max_tokens=99)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is no tokenizer that can be read"),
        ("tokenizer.json", "[]", "tokenizer.json is no tokenizer that can be read"),
        ("tokenizer_config.json", "null", "tokenizer_config.json holds None, not an object"),
        ("tokenizer_config.json", '{"eos_token": 5}', "no tokenizer could be loaded .*eos_token"),
        ("special_tokens_map.json", "{", "special_tokens_map.json is not valid JSON"),
        ("chat_template.jinja", "\n{{ x }", "model.path=.*template cannot be read, line 2: unexp"),
        ("chat_template.jinja", "{{ 1 // 0 }}", "model.path=.*ZeroDivisionError"),
        ("chat_template.jinja", "{{ messages[9].x.y }}", "model.path=.*UndefinedError"),
        ("generation_config.json", "[", "generation_config.json is not valid JSON"),
        ("generation_config.json", "null", "generation_config.json holds None"),
        ("generation_config.json", '{"eos_token_id": [1, "2"]}', r"eos_token_id is \[1, '2'\]"),
        ("generation_config.json", '{"eos_token_id": 10}', "eos_token_id is 10; .* from 0 to 9"),
        ("generation_config.json", '{"eos_token_id": -1}', "eos_token_id is -1"),
        ("generation_config.json", '{"eos_token_id": true}', "eos_token_id is True"),
    ],
)
def test_a_file_of_the_tokenizer_that_means_nothing_is_named(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = write_tokenizer(tmp_path, eos_token="<eos>")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        ChatTokenizer(path)
