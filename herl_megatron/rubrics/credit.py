"""Partial credit: what a check that returns a number says. Pure functions.

A check may return a number v in [0, 1], how far its statement is true of the response. It enters a
reward where the verdict of another criterion enters as 1 or 0. For everything that asks whether a
criterion is met (hindsight, `all_or_nothing`, shares), only full credit is: part of the way there
is still something to fix.
"""

from __future__ import annotations

from herl_megatron.types import Criterion, CriterionResult, Verdict

FULL_CREDIT = 1 - 1e-6
"""From here on a criterion is met: sums of fractions differ in their last bits (and rewards within
1e-6 are equal, `hindsight.select`)."""


def measured_result(criterion_id: str, value: float) -> CriterionResult:
    """What a check's number, in [0, 1], says of the statement as written."""
    assert 0 <= value <= 1, f"criterion {criterion_id}: {value} is not in [0, 1]"
    verdict = Verdict.FOLLOWED if value >= FULL_CREDIT else Verdict.NOT_FOLLOWED
    return CriterionResult(criterion_id, verdict, grade=value)


def truth(result: CriterionResult) -> float:
    """How far the statement as written is true, in [0, 1]: its grade, else 1 or 0."""
    return float(result.verdict is Verdict.FOLLOWED) if result.grade is None else result.grade


def credit(criterion: Criterion, result: CriterionResult) -> float:
    """What the criterion is worth to the response, in [0, 1]: v, or 1 - v where it is negative."""
    value = truth(result)
    return value if criterion.polarity == "positive" else 1 - value
