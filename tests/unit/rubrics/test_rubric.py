"""Rubric validation and rewards, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from herl_megatron.rubrics.rubric import answer_part, describe, score_response, validate_rubric
from herl_megatron.types import (
    Aggregation,
    Criterion,
    CriterionResult,
    Polarity,
    Rubric,
    Scored,
    Unscored,
    Verdict,
)

NO_COMMA = "ifeval/punctuation:no_comma"


def rule(name: str, *, weight: float = 1.0, polarity: Polarity = "positive") -> Criterion:
    return Criterion(name, "rule", check=NO_COMMA, weight=weight, polarity=polarity)


def statement(name: str, *, category: str = "", polarity: Polarity = "positive") -> Criterion:
    params = {"category": category} if category else {}
    return Criterion(name, "judge", params=params, description="Names it", polarity=polarity)


def said(name: str, holds: bool) -> CriterionResult:
    return CriterionResult(name, Verdict.FOLLOWED if holds else Verdict.NOT_FOLLOWED)


# Weights 3 and 1 for, 2 against.
MIXED = (rule("a", weight=3), rule("b"), rule("n", weight=2, polarity="negative"))


@pytest.mark.parametrize(
    ("aggregation", "holds", "expected"),
    [
        ("explicit", (True, False, False), 5 / 6),  # (3 + 2 avoided) / (3 + 1 + 2)
        ("explicit", (True, False, True), 3 / 6),
        ("explicit", (True, True, False), 1.0),
        ("all_or_nothing", (True, True, False), 1.0),
        ("all_or_nothing", (True, True, True), 0.0),
        ("all_or_nothing", (True, False, False), 0.0),
        ("herl_reference", (True, False, True), 3 / 4),  # the negative one weighs nothing
        ("herl_reference", (True, False, False), 3 / 4),
        ("healthbench", (True, False, True), 1 / 4),  # (3 - 2) / (3 + 1)
        ("healthbench", (False, False, True), -2 / 4),
        ("healthbench", (True, True, False), 1.0),
    ],
)
def test_reward_of_each_aggregation(
    aggregation: Aggregation, holds: tuple[bool, bool, bool], expected: float
) -> None:
    results = [said(c.id, h) for c, h in zip(MIXED, holds, strict=True)]
    score = score_response(Rubric(MIXED, aggregation), results)
    assert isinstance(score, Scored)
    assert score.reward == pytest.approx(expected, abs=1e-12)


def test_satisfied_and_unmet_have_polarity_applied_and_rubric_order() -> None:
    results = [said("n", True), said("b", True), said("a", False)]
    score = score_response(Rubric(MIXED), results)
    assert isinstance(score, Scored)
    assert (score.satisfied, score.unmet) == (("b",), ("a", "n"))
    assert [result.criterion_id for result in score.results] == ["a", "b", "n"]
    assert [result.verdict for result in score.results][2] is Verdict.FOLLOWED


def test_criterion_unverifiable_for_every_response_is_left_out() -> None:
    absent = CriterionResult("a", Verdict.UNVERIFIABLE, "no data", for_every_response=True)
    score = score_response(Rubric(MIXED), [absent, said("b", True), said("n", True)])
    assert isinstance(score, Scored)
    assert score.reward == pytest.approx(1 / 3)  # 1 of 1 + 2
    assert (score.satisfied, score.unmet, score.left_out) == (("b",), ("n",), ("a",))


def test_criterion_unverifiable_for_this_response_leaves_it_unscored() -> None:
    failed = CriterionResult("b", Verdict.UNVERIFIABLE, "no verdict within 5 s")
    score = score_response(Rubric(MIXED), [said("a", True), failed, said("n", False)])
    assert isinstance(score, Unscored)
    assert score.reason == "criterion b: no verdict within 5 s"
    assert [result.criterion_id for result in score.results] == ["a", "b", "n"]


def test_rubric_without_a_verifiable_criterion_is_unscored() -> None:
    results = [
        CriterionResult(c.id, Verdict.UNVERIFIABLE, "no data", for_every_response=True)
        for c in MIXED
    ]
    assert score_response(Rubric(MIXED), results) == Unscored(
        "no criterion of the rubric can be verified", tuple(results)
    )


@pytest.mark.parametrize("aggregation", ["healthbench", "herl_reference"])
def test_only_negative_criteria_left_is_unscored_not_a_division_by_zero(
    aggregation: Aggregation,
) -> None:
    gone = [
        CriterionResult(name, Verdict.UNVERIFIABLE, "no data", for_every_response=True)
        for name in "ab"
    ]
    score = score_response(Rubric(MIXED, aggregation), [*gone, said("n", False)])
    assert isinstance(score, Unscored)


def test_results_must_be_one_per_criterion() -> None:
    with pytest.raises(AssertionError, match="not one per criterion"):
        score_response(Rubric(MIXED), [said("a", True), said("b", True)])


@pytest.mark.parametrize(
    ("rubric", "message"),
    [
        (Rubric(()), "no criteria"),
        (Rubric((rule("a"), rule("a"))), "two criteria have the id 'a'"),
        (Rubric((rule("a", weight=0.0),)), "weight is 0, it must be finite and above 0"),
        (Rubric((rule("a", weight=-2.0),)), "polarity: negative"),
        (Rubric((rule("a", weight=float("nan")),)), "weight is nan"),
        (Rubric((rule("a", weight=float("inf")),)), "weight is inf"),
        (
            Rubric((rule("a", weight=1e308), rule("b", weight=1.5e308))),
            "add up to more than a number holds, the largest is 1.5e[+]308 of 'b'",
        ),
        (
            Rubric((rule("a", weight=1e308), rule("n", weight=1e308, polarity="negative"))),
            "add up to more than a number holds",
        ),
        # Grades of 0.4 and 0.6 would come out as 0 and 1.
        (Rubric((rule("a", weight=5e-324), rule("b", weight=5e-324))), "add up to 9.88.*e-324"),
        (Rubric((rule("a", weight=2e-310),)), "add up to 2e-310.*give them about 1"),
        (
            Rubric((rule("a", weight=1e300), rule("b", weight=1e-300))),
            "criterion 'b': weight is 1e-300 of 1e[+]300 in all .'a' has 1e[+]300.*too little",
        ),
        (
            # Deductions over a divisor that is next to nothing: the reward would be -1e300.
            Rubric((rule("a", weight=1e-300), rule("n", polarity="negative")), "healthbench"),
            "criterion 'a': weight is 1e-300 of 1 in all",
        ),
        (
            Rubric((replace(rule("a"), check="ifeval/punctuation:no_coma"),)),
            "criterion 'a': unknown check .*no_coma.*did you mean 'ifeval/punctuation:no_comma'",
        ),
        (
            Rubric((replace(rule("a"), params={"words": 3}),)),
            "criterion 'a': params are {'words': 3}; words: Extra .*takes: no parameters",
        ),
        (Rubric((Criterion("j", "judge"),)), "a judge criterion needs a description"),
        (Rubric((rule("a"),), "implicit"), "'implicit' is one grade by a judge, .* rule"),
        (Rubric((rule("a"),), "llmeval_med"), "'llmeval_med' is one grade by a judge"),
        (Rubric((rule("n", polarity="negative"),), "writingbench"), "say what is wanted"),
        (Rubric((statement("s", category="Vital"),), "rar"), "category is 'Vital'.*Essential"),
        (Rubric((rule("a"),), "rar"), "params.category is None"),
        (Rubric((rule("n", polarity="negative"),), "healthbench"), "the rubric has none"),
    ],
)
def test_invalid_rubrics_are_refused_with_the_reason(rubric: Rubric, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_rubric(rubric)


def test_valid_rubric_passes() -> None:
    validate_rubric(Rubric(MIXED, "healthbench"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((8e307, 8e307), 0.5), ((1e-290, 3e-290), 0.25), ((1.0, 1e-8), 1 / (1 + 1e-8))],
)
def test_only_ratios_of_weights_count(weights: tuple[float, float], expected: float) -> None:
    rubric = Rubric((rule("a", weight=weights[0]), rule("b", weight=weights[1])))
    validate_rubric(rubric)
    score = score_response(rubric, [said("a", True), said("b", False)])
    assert isinstance(score, Scored) and score.reward == pytest.approx(expected, rel=1e-12)


def test_a_reward_that_is_no_number_is_no_reward() -> None:
    """Such a rubric is refused at load; whoever builds one in code gets no NaN out of it."""
    rubric = Rubric((rule("a", weight=1e308), rule("b", weight=1.5e308)))
    score = score_response(rubric, [said("a", True), said("b", True)])
    assert (
        isinstance(score, Unscored)
        and "the reward of aggregation 'explicit' is nan" in score.reason
    )


def test_own_description_wins_over_the_check() -> None:
    assert describe(rule("a")) == "Do not use commas."
    assert describe(replace(rule("a"), description="No commas, please.")) == "No commas, please."


@pytest.mark.parametrize(
    ("response", "after", "answer"),
    [
        ("<think>a, b</think>\n\nAn answer.\n", "</think>", "An answer."),
        ("a, b</think>An answer.", "</think>", "An answer."),  # the template opened the block
        ("a</think>b</think>c", "</think>", "b</think>c"),  # servers show all after the first
        ("a</think>\n", "</think>", ""),
        ("<think>cut while think", "</think>", None),
        ("", "</think>", None),
        ("  kept as it is \n", "", "  kept as it is \n"),
    ],
)
def test_the_answer_is_what_follows_the_thinking(
    response: str, after: str, answer: str | None
) -> None:
    assert answer_part(response, after) == answer
