"""Scored answers, made by hand for the tests of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from herl_megatron.benchmarks.answered import Answered
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.types import (
    Criterion,
    CriterionResult,
    Message,
    Prompt,
    Rubric,
    Score,
    Unscored,
    Verdict,
)

UNSCORED = Unscored("the judge failed")


def prompt(
    name: str,
    criteria: Sequence[Criterion],
    *,
    source: str,
    aggregation: Any = "explicit",
    extra: Mapping[str, Any] | None = None,
) -> Prompt:
    rubric = Rubric(tuple(criteria), aggregation)
    return Prompt(name, (Message("user", name),), rubric, source=source, extra=extra or {})


def rules(*checks: str) -> list[Criterion]:
    """c0, c1, ... of these checks."""
    return [Criterion(f"c{n}", "rule", check=check) for n, check in enumerate(checks)]


def verdicts(given: str) -> tuple[CriterionResult, ...]:
    """`+-?!`: followed, not followed, left out for every response, failed for this one."""
    known = {"+": Verdict.FOLLOWED, "-": Verdict.NOT_FOLLOWED}
    return tuple(
        CriterionResult(
            f"c{n}", known.get(mark, Verdict.UNVERIFIABLE), for_every_response=mark == "?"
        )
        for n, mark in enumerate(given)
    )


def score(of: Prompt, given: str) -> Score:
    return score_response(of.rubric, verdicts(given))


def graded(of: Prompt, *grades: float, satisfied_from: float) -> Score:
    """Grades in (0, 1], one for each criterion."""
    results = [
        CriterionResult(
            c.id, Verdict.FOLLOWED if g >= satisfied_from else Verdict.NOT_FOLLOWED, grade=g
        )
        for c, g in zip(of.rubric.criteria, grades, strict=True)
    ]
    return score_response(of.rubric, results)


def answered(of: Prompt, *given: str, loose: Sequence[str] = ()) -> Answered:
    """Verdicts of each response; "" is one without a score."""
    scores = tuple(score(of, one) if one else UNSCORED for one in given)
    return Answered(of, scores, tuple(verdicts(one) for one in loose))
