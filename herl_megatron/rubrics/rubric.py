"""Rubrics: what makes one valid, and how verdicts become a reward. Pure functions.

A score that could not be made is `Unscored` with its reason; no number ever stands in for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from herl_megatron.rubrics.checks import registry
from herl_megatron.types import (
    Criterion,
    CriterionResult,
    Rubric,
    Score,
    Scored,
    Unscored,
    Verdict,
)

AGGREGATIONS = ("explicit", "all_or_nothing", "healthbench", "herl_reference")
"""Rules that turn verdicts into a reward today; `implicit` needs a judge."""


def validate_rubric(rubric: Rubric) -> None:
    """Raise ValueError, naming the criterion and the fix, for a rubric that cannot be scored."""
    if not rubric.criteria:
        raise ValueError("the rubric has no criteria; add at least one or drop the row")
    if rubric.aggregation == "implicit":
        raise ValueError(
            "aggregation 'implicit' is one judgement by a judge model, and no judge client is "
            "available yet; use 'explicit' with rule criteria or drop the row"
        )
    if rubric.aggregation not in AGGREGATIONS:
        raise ValueError(
            f"unknown aggregation {rubric.aggregation!r}; use one of {', '.join(AGGREGATIONS)}"
        )
    seen: set[str] = set()
    for criterion in rubric.criteria:
        if criterion.id in seen:
            raise ValueError(f"two criteria have the id {criterion.id!r}; ids must differ")
        seen.add(criterion.id)
        _validate_criterion(criterion)
    positive = any(criterion.polarity == "positive" for criterion in rubric.criteria)
    if rubric.aggregation in ("healthbench", "herl_reference") and not positive:
        raise ValueError(
            f"aggregation {rubric.aggregation!r} divides by the weights of positive criteria and "
            "the rubric has none; add one or use 'explicit'"
        )


def _validate_criterion(criterion: Criterion) -> None:
    if not criterion.id:
        raise ValueError("a criterion has an empty id; give every criterion its own id")
    if not (math.isfinite(criterion.weight) and criterion.weight > 0):
        raise ValueError(
            f"criterion {criterion.id!r}: weight is {criterion.weight:g}, it must be above 0; "
            "mark what counts against a response by polarity: negative"
        )
    if criterion.kind == "rule":
        _validate_rule(criterion)
        return
    if not criterion.description.strip():
        raise ValueError(f"criterion {criterion.id!r}: a judge criterion needs a description")
    raise ValueError(
        f"criterion {criterion.id!r} asks for a judge, and no judge client is available yet; "
        "use a rule criterion or drop the row"
    )


def _validate_rule(criterion: Criterion) -> None:
    """A check that exists, with parameters that fit it: else it would silently be left out."""
    try:
        problem = registry.parameter_problem(criterion)
        known = registry.get(criterion.check).params.model_fields
    except ValueError as error:
        raise ValueError(f"criterion {criterion.id!r}: {error}") from error
    if problem:
        takes = ", ".join(known) if known else "no parameters"
        raise ValueError(
            f"criterion {criterion.id!r}: params are {dict(criterion.params)!r:.120}; {problem}; "
            f"{criterion.check} takes: {takes}; correct them or drop the criterion"
        )


def describe(criterion: Criterion) -> str:
    """The criterion in words: its own description, or that of its check."""
    if criterion.description:
        return criterion.description
    return registry.describe(criterion)


def score_response(rubric: Rubric, results: Sequence[CriterionResult]) -> Score:
    """Turn the verdicts on one response into its score (section 4 of the design, "Reward").

    `results` holds one result per criterion, in any order. A criterion that cannot be verified
    for any response is left out. One that failed for this response alone leaves the response
    unscored: rewards over different criteria do not compare.
    """
    by_id = {result.criterion_id: result for result in results}
    expected = {criterion.id for criterion in rubric.criteria}
    assert len(by_id) == len(results) and set(by_id) == expected, (
        f"results {sorted(by_id)} are not one per criterion {sorted(expected)}"
    )
    ordered = tuple(by_id[criterion.id] for criterion in rubric.criteria)
    counted: list[tuple[Criterion, bool]] = []
    for criterion, result in zip(rubric.criteria, ordered, strict=True):
        if result.verdict is not Verdict.UNVERIFIABLE:
            counted.append((criterion, result.verdict is Verdict.FOLLOWED))
        elif not result.for_every_response:
            return Unscored(f"criterion {criterion.id}: {result.reason}", ordered)
    if not counted:
        return Unscored("no criterion of the rubric can be verified", ordered)
    reward = _reward(rubric.aggregation, counted)
    if reward is None:
        return Unscored("no positive criterion of the rubric can be verified", ordered)
    good = {c.id for c, holds in counted if holds == (c.polarity == "positive")}
    return Scored(
        reward=reward,
        results=ordered,
        satisfied=tuple(c.id for c, _ in counted if c.id in good),
        unmet=tuple(c.id for c, _ in counted if c.id not in good),
    )


def _reward(aggregation: str, counted: Sequence[tuple[Criterion, bool]]) -> float | None:
    """The reward of `(criterion, statement holds)` pairs, or None without a positive weight.

    explicit: satisfied weight over all weight. all_or_nothing: 1 if all are satisfied, else 0.
    herl_reference: as the released HeRL code, which clamps the weight of negative criteria to 0.
    healthbench: points of every statement that holds, negative ones deducted, over the positive
    points (simple-evals); below 0 when the deductions win.
    """
    positive = [(c.weight, holds) for c, holds in counted if c.polarity == "positive"]
    negative = [(c.weight, holds) for c, holds in counted if c.polarity == "negative"]
    earned = sum(weight for weight, holds in positive if holds)
    total = sum(weight for weight, _ in positive)
    if aggregation == "explicit":
        avoided = sum(weight for weight, holds in negative if not holds)
        return (earned + avoided) / (total + sum(weight for weight, _ in negative))
    if aggregation == "all_or_nothing":
        return float(all(h for _, h in positive) and not any(h for _, h in negative))
    assert aggregation in ("healthbench", "herl_reference"), f"cannot aggregate {aggregation!r}"
    if not positive:
        return None
    deducted = sum(weight for weight, holds in negative if holds)
    return (earned - (deducted if aggregation == "healthbench" else 0.0)) / total
