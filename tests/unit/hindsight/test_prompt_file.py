"""A revision prompt of a user's own: to the letter, and every mistake in its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.experience import revision_prompt
from herl_megatron.hindsight.prompt_file import revision_form
from herl_megatron.hindsight.revision_prompts import check_prompts, revision_messages
from herl_megatron.types import Criterion, Message, Prompt, Rubric, Scored
from tests.unit.rollout.fakes import CharTokenizer

SHORT = Criterion("short", "judge", description="Be short.")
DOSE = Criterion("dose", "judge", description="States a dose.", polarity="negative")
RULE = Criterion("comma", "rule", check="ifeval/punctuation:no_comma")
TURNS = (Message("system", "You are a nurse."), Message("user", "What {helps}?"))
PROMPT = Prompt("p7", TURNS, Rubric((SHORT, DOSE, RULE)))


def config(tmp_path: Path, content: str | bytes) -> HindsightConfig:
    file = tmp_path / "revise.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return HindsightConfig(prompt_file=str(file))


def test_without_a_file_the_style_counts() -> None:
    assert revision_form(HindsightConfig(prompt_style="naive")) == "naive"


def test_the_template_is_filled_once_and_stands_for_the_last_message(tmp_path: Path) -> None:
    """Braces of the prompt and of the draft are theirs; a byte order mark is none of the text."""
    text = "{instruction}\n\nSo far {{}}: {draft}\nKeep:\n{met}\nMend:\n{unmet}\n\n"
    form = revision_form(config(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    messages = revision_messages(PROMPT, "{draft} {x", [SHORT], [DOSE, RULE], form)
    assert messages[:1] == TURNS[:1] and messages[1].role == "user" and len(messages) == 2
    assert messages[1].content == (
        "What {helps}?\n\nSo far {}: {draft} {x\nKeep:\n- Be short.\nMend:\n"
        "- avoid: States a dose.\n- Do not use commas."
    )
    content = revision_messages(PROMPT, "d", [], [SHORT], form)[-1].content
    assert content.endswith("Keep:\nnone\nMend:\n- Be short.")


def test_what_comes_before_the_end_of_the_instruction_is_shared(tmp_path: Path) -> None:
    """So an engine that has the prompt's tokens has the beginning of the revision prompt's."""
    given = config(tmp_path, "{instruction}\n{draft}")
    score = Scored(0.5, (), ("short",), ("dose", "comma"))
    text, ids = revision_prompt(
        PROMPT, "A pill.", score, given, CharTokenizer(), revision_form(given)
    )
    assert text == "You are a nurse.\n\nWhat {helps}?\nA pill."
    shown = CharTokenizer().decode(ids)
    shared = "system>You are a nurse.|user>What {helps}?"
    assert shown == f"{shared}\nA pill.|assistant>"
    assert CharTokenizer().decode(CharTokenizer().prompt_ids(TURNS)).startswith(shared)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty; write"),
        (" \n\n", "is empty; write"),
        (b"{instruction} \xff{draft}", "is not UTF-8 \\(byte 0xff at 14\\); save it as UTF-8"),
        ("{instruction} {drfat}", "{drfat} is no placeholder; use {instruction}, {draft}, {met}"),
        ("{instruction} {draft!r}", "{draft} is no placeholder"),
        ("{instruction} {draft.text}", "{draft.text} is no placeholder"),
        ("{instruction} {draft} {}", "{} is no placeholder"),
        ("{instruction} {draft} {", "write a brace that is no placeholder as {{ or }}"),
        ("{draft} {unmet}", "the placeholder {instruction} is missing"),
        ("{instruction} Again!", "shows neither {draft} nor {met} nor {unmet}, so every draft"),
    ],
)
def test_a_mistake_names_the_file_and_what_to_do(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    with pytest.raises(ValueError, match="hindsight.prompt_file.*revise.txt.*" + said):
        revision_form(config(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    gone = HindsightConfig(prompt_file=str(tmp_path / "gone.txt"))
    with pytest.raises(ValueError, match="gone.txt' cannot be read: No such file"):
        revision_form(gone)


def test_one_grade_for_all_cannot_fill_a_list(tmp_path: Path) -> None:
    prompt = replace(PROMPT, rubric=Rubric((SHORT,), "implicit"))
    for name in ("{met}", "{unmet}"):
        form = revision_form(config(tmp_path, "{instruction} {draft} " + name))
        with pytest.raises(
            ValueError, match="'p7': aggregation 'implicit' .*hindsight.prompt_file"
        ):
            check_prompts([PROMPT, prompt], form)
    check_prompts([prompt], revision_form(config(tmp_path, "{instruction} {draft}")))


def test_a_file_that_nobody_read_is_no_style(tmp_path: Path) -> None:
    given = config(tmp_path, "{instruction} {draft}")
    with pytest.raises(AssertionError, match="read at the start"):
        revision_prompt(PROMPT, "d", Scored(0.5, (), (), ("short",)), given, CharTokenizer())
