"""The tasks for a small real model: prompts, rubrics and answers worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from herl_megatron.data.prompt_source import check_no_leakage
from herl_megatron.data.short_answers import HOUSE_STYLES, INSTRUCTIONS, TOPICS, Task, draw_rows
from herl_megatron.rubrics.checks.registry import run_check
from herl_megatron.rubrics.rubric import describe, score_response, validate_rubric
from herl_megatron.types import Criterion, Prompt, Scored

GOOD = {
    "no_comma": "Rivers are long.",
    "lowercase": "the river is long and it runs to the sea.",
    "quotation": '"Rivers are long."',
    "title": "<<Rivers>> They are long.",
    "end_phrase": "Rivers are long. Thank you for reading.",
    "postscript": "Rivers are long.\nP.S. They are wet.",
    "placeholder": "Dear [name], rivers are long.",
    "highlight": "Rivers are *long*.",
    "bullets": "* Rivers are long.\n* They are wet.",
    "keyword": "Fish and rivers go together.",
}
BAD = {
    "no_comma": "Rivers, they are long.",
    "lowercase": "The river is long and it runs to the sea.",
    "quotation": '"Rivers" are long.',
    "title": "<Rivers> They are long.",
    "end_phrase": "Thank you for reading about rivers.",
    "postscript": "Rivers are long.\nPS They are wet.",
    "placeholder": "Dear reader, rivers are long.",
    "highlight": "Rivers are long.",
    "bullets": "* Rivers are long.",
    "keyword": "Fish like rivers.",
}


def reward(prompt: Prompt, response: str) -> float:
    results = [run_check(criterion, response) for criterion in prompt.rubric.criteria]
    score = score_response(prompt.rubric, results)
    assert isinstance(score, Scored), score
    return score.reward


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_both_verdicts_of_every_instruction(name: str) -> None:
    criterion = INSTRUCTIONS[name].criterion(1, "rivers")
    verdicts = [run_check(criterion, text).verdict.value for text in (GOOD[name], BAD[name])]
    assert verdicts == ["followed", "not_followed"]


def test_a_note_in_house_style_has_all_three_and_is_not_told() -> None:
    rows = draw_rows("unstated", seed=0, train=192, heldout=64)
    for prompt in (*rows.train, *rows.heldout):
        validate_rubric(prompt.rubric)
        told = prompt.messages[0].content.lower()
        assert not any(word in told for word in ("comma", "title", "bracket", "p.s.", "postscript"))
    prompt = rows.train[0]
    assert [describe(criterion) for criterion in prompt.rubric.criteria] == [
        "Do not use any commas.",
        "Include a title wrapped in double angular brackets, such as <<title>>.",
        "At the end, add a postscript starting with P.S.",
    ]
    assert reward(prompt, "<<Rivers>> They are long.\nP.S. They are wet.") == 1.0
    assert reward(prompt, "Rivers are long.") == pytest.approx(1 / 3)
    assert reward(prompt, "Rivers, lakes.") == 0.0


def test_stated_prompts_state_their_two_criteria() -> None:
    rows = draw_rows("stated", seed=0, train=240, heldout=64)
    for prompt in (*rows.train, *rows.heldout):
        validate_rubric(prompt.rubric)
        word = prompt.extra["topic"].split()[-1]
        told = prompt.messages[0].content
        assert len(prompt.rubric.criteria) == 2
        for criterion in prompt.rubric.criteria:
            (name,) = (n for n, i in INSTRUCTIONS.items() if f"ifeval/{i.check}" == criterion.check)
            assert any(text.format(word=word) in told for text in INSTRUCTIONS[name].sentences)


def test_a_keyword_is_the_topics_last_word() -> None:
    rubric = INSTRUCTIONS["keyword"].criterion(2, "leaves")
    assert rubric == Criterion(
        "c2",
        "rule",
        "ifeval/keywords:existence",
        {"keywords": ["leaves", "together"]},
        "Include the words leaves and together.",
    )


@pytest.mark.parametrize("task", ["stated", "unstated"])
def test_no_topic_is_on_both_sides_and_topics_are_even(task: Task) -> None:
    rows = draw_rows(task, seed=5, train=96, heldout=64)
    train, heldout = (
        Counter(p.extra["topic"] for p in part) for part in (rows.train, rows.heldout)
    )
    assert not set(train) & set(heldout)
    assert (len(train), set(train.values())) == (48, {2})
    assert (len(heldout), set(heldout.values())) == (16, {4})
    check_no_leakage(list(rows.train), list(rows.heldout))
    texts = [p.messages[0].content for p in (*rows.train, *rows.heldout)]
    assert len(set(texts)) == 160


def test_a_seed_draws_the_same_rows_and_another_seed_others() -> None:
    one, same, other = (draw_rows("stated", seed=s, train=32, heldout=8) for s in (1, 1, 2))
    assert one == same and one != other


def test_styles_come_with_their_requests() -> None:
    rows = draw_rows("unstated", seed=0, train=48, heldout=16, styles=("card", "list"))
    for prompt in rows.train:
        name = "card" if "card" in prompt.messages[0].content else "list"
        checks = [criterion.check for criterion in prompt.rubric.criteria]
        style = HOUSE_STYLES[name].instructions
        assert checks == [f"ifeval/{INSTRUCTIONS[i].check}" for i in style]
    card = next(p for p in rows.train if "card" in p.messages[0].content)
    assert reward(card, '"Dear [name] rivers are long."') == 1.0


def test_topics_differ() -> None:
    assert len(set(TOPICS)) == len(TOPICS) == 64


@pytest.mark.parametrize(
    ("train", "heldout", "topics", "style", "said"),
    [
        (193, 8, 16, "note", "193 train prompts were asked for; 48 topics give 1 to 192"),
        (8, 0, 16, "note", "0 heldout prompts"),
        (8, 8, 64, "note", "64 held-out topics of 64"),
        (8, 8, 16, "letter", "style 'letter' is unknown: use note, card, list"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    train: int, heldout: int, topics: int, style: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        draw_rows(
            "unstated", seed=0, train=train, heldout=heldout, heldout_topics=topics, styles=(style,)
        )
