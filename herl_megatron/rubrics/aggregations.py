"""How verdicts and grades become a reward, one rule per name. Pure functions.

Every rule gives 1.0 to a response that leaves nothing to wish for, so `hindsight.threshold` has the
same meaning for all of them. The smallest reward: 0 where verdicts are counted, 1/10 or 1/5 where a
judge grades, below 0 where points are deducted (`healthbench`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from herl_megatron.rubrics.credit import FULL_CREDIT, credit, truth
from herl_megatron.rubrics.judge.formats import (
    BANDS,
    CHECKLIST,
    IMPLICIT,
    POINTS,
    STATEMENTS,
    JudgeFormat,
)
from herl_megatron.types import Aggregation, Criterion, CriterionResult, Verdict

CATEGORY_WEIGHTS: Mapping[str, float] = {
    "Essential": 1.0,
    "Important": 0.7,
    "Optional": 0.3,
    "Pitfall": 0.9,
}
"""Weights of `rar`, by `params.category` (Rubrics as Rewards, arXiv 2507.17746, explicit)."""

Counted = Sequence[tuple[Criterion, CriterionResult]]
"""The criteria that could be verified, with their results."""


@dataclass(frozen=True)
class AggregationRule:
    """One aggregation.

    reward: the reward, None where the formula would divide by 0.
    judge_format: what it needs to hear from a judge.
    needs_positive: its divisor is the weight of the positive criteria alone.
    """

    reward: Callable[[Counted], float | None]
    judge_format: JudgeFormat = STATEMENTS
    needs_positive: bool = False


def graded_result(criterion_id: str, form: JudgeFormat, grade: float) -> CriterionResult:
    """What a judge's grade, or the mean of several, says about a criterion; within the scale."""
    scale = form.grading
    assert scale is not None, f"criterion {criterion_id}: a grade in the format {form.name}"
    assert 1 <= grade <= scale.top, f"criterion {criterion_id}: {grade} is not in 1..{scale.top}"
    satisfied = grade >= scale.satisfied_from
    verdict = Verdict.FOLLOWED if satisfied else Verdict.NOT_FOLLOWED
    return CriterionResult(criterion_id, verdict, grade=grade / scale.top)


def is_satisfied(criterion: Criterion, result: CriterionResult) -> bool:
    """Whether the verdict counts in the response's favour: polarity applied. Of a check's number,
    whether its credit is full; a judge's grade has its own scale (`judge.formats`)."""
    if criterion.kind == "rule" and result.grade is not None:
        return credit(criterion, result) >= FULL_CREDIT
    return (result.verdict is Verdict.FOLLOWED) == (criterion.polarity == "positive")


def weight_of(aggregation: Aggregation, criterion: Criterion) -> float:
    """What the criterion weighs: its own weight, under `rar` that of its category."""
    if aggregation == "rar":
        return CATEGORY_WEIGHTS[criterion.params["category"]]
    return criterion.weight


def _explicit(counted: Counted) -> float:
    """Sum of weight times credit over all weight; a verdict's credit is 1 or 0, and that of a
    negative criterion is 1 when it is not true.

    WritingBench weighs its criteria equally and shows 100 times this, its grades being the credit.
    """
    return sum(c.weight * credit(c, result) for c, result in counted) / sum(
        c.weight for c, _ in counted
    )


def _all_or_nothing(counted: Counted) -> float:
    """1 if every criterion is satisfied, else 0."""
    return float(all(is_satisfied(c, result) for c, result in counted))


def _rar(counted: Counted) -> float:
    """As `explicit`, the weight being that of the criterion's category."""
    weights = [weight_of("rar", c) for c, _ in counted]
    pairs = zip(weights, counted, strict=True)
    return sum(w * credit(c, result) for w, (c, result) in pairs) / sum(weights)


def _points(counted: Counted) -> float | None:
    """Points of what is true, deductions included, over the positive points (simple-evals). What is
    true in part has that part of its points.

    Below 0 when the deductions win. The benchmark clips the mean over its examples to [0, 1], not
    the single one.
    """
    total = sum(c.weight for c, _ in counted if c.polarity == "positive")
    signed = sum(
        (c.weight if c.polarity == "positive" else -c.weight) * truth(result)
        for c, result in counted
    )
    return signed / total if total else None


def _released(counted: Counted) -> float | None:
    """As the released HeRL code: the weight of a negative criterion is clamped to 0."""
    positive = [(c, result) for c, result in counted if c.polarity == "positive"]
    return _explicit(positive) if positive else None


def _one_grade(counted: Counted) -> float:
    """The one grade, which every result carries."""
    grades = {result.grade for _, result in counted}
    (grade,) = grades
    assert grade is not None, "a rubric with one grade has a result without it"
    return grade


RULES: Mapping[Aggregation, AggregationRule] = {
    "explicit": AggregationRule(_explicit),
    "all_or_nothing": AggregationRule(_all_or_nothing),
    "rar": AggregationRule(_rar),
    "implicit": AggregationRule(_one_grade, IMPLICIT),
    "healthbench": AggregationRule(_points, POINTS, needs_positive=True),
    "writingbench": AggregationRule(_explicit, BANDS),
    "llmeval_med": AggregationRule(_one_grade, CHECKLIST),
    "herl_reference": AggregationRule(_released, needs_positive=True),
}
