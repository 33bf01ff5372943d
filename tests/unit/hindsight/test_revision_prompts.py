"""The revision prompt, to the letter."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from herl_megatron.hindsight.revision_prompts import (
    PromptStyle,
    check_prompts,
    plain_text,
    revision_messages,
)
from herl_megatron.types import Aggregation, Criterion, Message, Prompt, Rubric

SHORT = Criterion("short", "judge", description="Be short.")
DOSE = Criterion("dose", "judge", description="States a dose.", weight=2.5, polarity="negative")
RULE = Criterion("comma", "rule", check="ifeval/punctuation:no_comma")
TURNS = (
    Message("system", "You are a nurse."),
    Message("user", "Hi."),
    Message("assistant", "Hello."),
    Message("user", "What helps?"),
)
PROMPT = Prompt("p7", TURNS, Rubric((SHORT, DOSE, RULE)))


def test_criteria_style_extends_the_last_user_message() -> None:
    messages = revision_messages(PROMPT, "Rest, and 5 g.", [SHORT], [DOSE], "criteria")
    assert messages[:3] == TURNS[:3]
    assert messages[3].role == "user"
    assert messages[3].content == (
        "What helps?\n\n"
        "Draft:\nRest, and 5 g.\n\n"
        "Requirements met, to keep:\n- Be short.\n\n"
        "Requirements missed, to fix:\n- avoid: States a dose.\n\n"
        "Write only the revised answer."
    )


def test_rubric_style_shows_weights() -> None:
    content = revision_messages(PROMPT, "x", [SHORT], [DOSE], "rubric")[-1].content
    assert "to keep:\n- Be short. (weight 1)\n\n" in content
    assert "to fix:\n- avoid: States a dose. (weight 2.5)\n\n" in content


def test_naive_style_shows_the_draft_and_no_verdict() -> None:
    content = revision_messages(PROMPT, "x y", [SHORT], [DOSE], "naive")[-1].content
    assert content == (
        "What helps?\n\nDraft:\nx y\n\nImprove the draft. Write only the revised answer."
    )


def test_guided_style_makes_all_criteria_instructions_and_shows_no_draft() -> None:
    messages = revision_messages(PROMPT, "the draft", [RULE, SHORT], [DOSE], "guided")
    assert messages[:3] == TURNS[:3] and len(messages) == 4
    assert messages[3].content == (
        "What helps?\n\n"
        "Follow these requirements:\n- Be short.\n- avoid: States a dose.\n- Do not use commas."
    )


def test_guided_missed_style_tells_what_was_missed_alone() -> None:
    content = revision_messages(PROMPT, "the draft", [SHORT], [DOSE], "guided_missed")[-1].content
    assert content == "What helps?\n\nFollow these requirements:\n- avoid: States a dose."


@pytest.mark.parametrize("style", ["criteria", "rubric"])
def test_an_empty_list_leaves_its_block_out(style: PromptStyle) -> None:
    content = revision_messages(PROMPT, "x", [], [SHORT], style)[-1].content
    assert "to keep" not in content and "none" not in content.lower()
    assert content.split("\n\n")[2].startswith("Requirements missed, to fix:\n- Be short.")


def test_a_satisfied_negative_criterion_stays_something_to_avoid() -> None:
    content = revision_messages(PROMPT, "x", [DOSE], [SHORT], "criteria")[-1].content
    assert "to keep:\n- avoid: States a dose.\n" in content


def test_a_rule_without_description_is_described_by_its_check() -> None:
    content = revision_messages(PROMPT, "x", [], [RULE], "criteria")[-1].content
    line = content.split("to fix:\n- ")[1].split("\n")[0]
    assert "comma" in line.lower()


def test_the_draft_is_shown_as_it_is() -> None:
    draft = "  two\n\nlines, long " + "word " * 500
    assert (
        f"Draft:\n{draft}\n\n" in revision_messages(PROMPT, draft, [], [SHORT], "naive")[-1].content
    )


def test_a_prompt_that_does_not_end_with_the_user_is_refused() -> None:
    prompt = Prompt("p8", TURNS[:3], Rubric((SHORT,)))
    with pytest.raises(ValueError, match="'p8' ends with 'assistant'"):
        revision_messages(prompt, "x", [], [SHORT], "criteria")


@pytest.mark.parametrize("aggregation", ["implicit", "llmeval_med"])
@pytest.mark.parametrize("style", ["criteria", "rubric"])
def test_one_grade_for_all_cannot_say_what_to_fix(
    aggregation: Aggregation, style: PromptStyle
) -> None:
    prompt = replace(PROMPT, rubric=Rubric((SHORT,), aggregation))
    with pytest.raises(ValueError, match=f"'p7': aggregation '{aggregation}' .* naive"):
        check_prompts([PROMPT, prompt], style)
    check_prompts([prompt], "naive")


def test_rubric_style_shows_the_weight_of_the_category_where_it_counts() -> None:
    important = replace(SHORT, params={"category": "Important"}, weight=4)
    prompt = replace(PROMPT, rubric=Rubric((important,), "rar"))
    content = revision_messages(prompt, "x", [], [important], "rubric")[-1].content
    assert "- Be short. (weight 0.7)" in content


def test_an_unknown_style_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown prompt style 'medical_rar'"):
        revision_messages(PROMPT, "x", [], [SHORT], cast(PromptStyle, "medical_rar"))


def test_plain_text_holds_contents_without_roles() -> None:
    assert plain_text(TURNS) == "You are a nurse.\n\nHi.\n\nHello.\n\nWhat helps?"
