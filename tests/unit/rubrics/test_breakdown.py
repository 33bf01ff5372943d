"""Scores by check and by source, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

from herl_megatron.rubrics.breakdown import (
    credit_by_check,
    reward_by_source,
    satisfied_by_check,
)
from herl_megatron.rubrics.credit import measured_result
from herl_megatron.types import (
    Criterion,
    CriterionResult,
    Prompt,
    Rubric,
    Scored,
    ScoredGroup,
    Unscored,
    Verdict,
)
from tests.unit.hindsight.groups import make_group

RUBRIC = Rubric(
    (
        Criterion(id="a", kind="rule", check="words"),
        Criterion(id="b", kind="judge", description="is kind"),
        Criterion(id="c", kind="judge", description="is true"),
    )
)


def group(source: str, *scores: Scored | Unscored) -> ScoredGroup:
    """Of a prompt with one rule and two statements."""
    made = make_group([0.0] * len(scores))
    prompt = Prompt(id="p", messages=(), rubric=RUBRIC, source=source)
    return replace(made, group=replace(made.group, prompt=prompt), scores=scores)


GROUPS = [
    group("x", Scored(1.0, (), ("a", "b", "c"), ()), Scored(0.25, (), ("b",), ("a", "c"))),
    group("y", Scored(0.5, (), ("a",), ("b",)), Unscored("the judge is away", ())),
    group("", Scored(0.0, (), (), ("a",))),
    group("z", Unscored("the judge is away", ())),
]


def test_by_check() -> None:
    """words: met by 2 of 4; statements: 2 + 1 met of 2 + 2 + 1."""
    assert satisfied_by_check(GROUPS) == {"judge": 3 / 5, "words": 2 / 4}


def test_by_source() -> None:
    """A source without a scored response has no mean, nor has what names no source."""
    assert reward_by_source(GROUPS) == {"x": 0.625, "y": 0.5}


def test_credit_by_check_counts_numbers_alone() -> None:
    """words 0.5 and, of the negative one, 1 - 0.25; the verdict and the unscored count nothing."""
    rubric = Rubric(
        (
            Criterion(id="a", kind="rule", check="words"),
            Criterion(id="n", kind="rule", check="words", polarity="negative"),
            Criterion(id="b", kind="judge", description="is kind"),
        )
    )
    results = (measured_result("a", 0.5), measured_result("n", 0.25))
    graded = CriterionResult("b", Verdict.FOLLOWED, grade=0.9)  # a judge's is not a check's
    plain = CriterionResult("a", Verdict.FOLLOWED)
    made = group(
        "x",
        Scored(0.5, (*results, graded), ("b",), ("a", "n")),
        Scored(1.0, (plain,), ("a",), ()),
        Unscored("no", results),
    )
    made = replace(made, group=replace(made.group, prompt=Prompt("p", (), rubric)))
    assert credit_by_check([made, *GROUPS]) == {"words": (0.5 + 0.75) / 2}
