"""Rubrics: what makes one valid, and how verdicts become a reward. Pure functions.

A score that could not be made is `Unscored` with its reason; no number ever stands in for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from herl_megatron.rubrics.aggregations import (
    CATEGORY_WEIGHTS,
    RULES,
    Counted,
    graded_result,
    is_satisfied,
)
from herl_megatron.rubrics.checks import registry
from herl_megatron.rubrics.judge.formats import JudgeFormat
from herl_megatron.types import (
    Aggregation,
    Criterion,
    CriterionResult,
    Rubric,
    Score,
    Scored,
    Unscored,
    Verdict,
)

LEAST_SUM = 1e-290
"""Of a rubric's weights: near the least number that there is, products with grades lose their
digits and come out as 0 or as the weight itself."""
LEAST_SHARE = 1e-9
"""Of the rubric's weight, below which a criterion decides nothing: rewards within 1e-6 are equal
(`algos.advantages`). It also keeps every ratio of two weights far from the end of the numbers."""


def answer_part(response: str, after: str) -> str | None:
    """What of a response is its answer: all of it, or what follows the first `after`, the end of a
    reasoning model's thinking, as servers show it.

    None for a response without `after`, which never came to an answer (it was cut while thinking).
    """
    if not after:
        return response
    _, found, answer = response.partition(after)
    return answer.strip() if found else None


def judge_format(rubric: Rubric) -> JudgeFormat:
    """What a judge is asked about the judge criteria of this rubric."""
    return RULES[rubric.aggregation].judge_format


def asks_judge(rubric: Rubric) -> bool:
    """Whether the rubric cannot be scored without a judge."""
    return any(criterion.kind == "judge" for criterion in rubric.criteria)


def validate_rubric(rubric: Rubric) -> None:
    """Raise ValueError, naming the criterion and the fix, for a rubric that cannot be scored."""
    if not rubric.criteria:
        raise ValueError("the rubric has no criteria; add at least one or drop the row")
    if rubric.aggregation not in RULES:
        raise ValueError(
            f"unknown aggregation {rubric.aggregation!r}; use one of {', '.join(RULES)}"
        )
    seen: set[str] = set()
    for criterion in rubric.criteria:
        if criterion.id in seen:
            raise ValueError(f"two criteria have the id {criterion.id!r}; ids must differ")
        seen.add(criterion.id)
        _validate_criterion(criterion)
        if problem := _misfit(rubric.aggregation, criterion):
            raise ValueError(f"criterion {criterion.id!r}: {problem}")
    _validate_weights(rubric)
    positive = any(criterion.polarity == "positive" for criterion in rubric.criteria)
    if RULES[rubric.aggregation].needs_positive and not positive:
        raise ValueError(
            f"aggregation {rubric.aggregation!r} divides by the weights of positive criteria and "
            "the rubric has none; add one or use 'explicit'"
        )


def _validate_weights(rubric: Rubric) -> None:
    """A reward is a ratio of sums of weights: both must be numbers, and each weight count in it."""
    total = sum(criterion.weight for criterion in rubric.criteria)
    heaviest = max(rubric.criteria, key=lambda criterion: criterion.weight)
    if not math.isfinite(total):
        raise ValueError(
            f"the criteria's weights add up to more than a number holds, the largest is"
            f" {heaviest.weight:g} of {heaviest.id!r}; only their ratios count, so divide all of"
            " them by it"
        )
    if total < LEAST_SUM:
        raise ValueError(
            f"the criteria's weights add up to {total:g}, of which a computer keeps few digits or"
            " none; only their ratios count, so give them about 1"
        )
    for criterion in rubric.criteria:
        if criterion.weight < LEAST_SHARE * total:
            raise ValueError(
                f"criterion {criterion.id!r}: weight is {criterion.weight:g} of {total:g} in all"
                f" ({heaviest.id!r} has {heaviest.weight:g}), too little to show in any reward;"
                " raise it, or drop the criterion"
            )


def _misfit(aggregation: Aggregation, criterion: Criterion) -> str:
    """Why the criterion makes no sense under this aggregation, or the empty string."""
    form = RULES[aggregation].judge_format
    if form.one_grade and criterion.kind == "rule":
        return (
            f"aggregation {aggregation!r} is one grade by a judge, which a rule cannot enter; "
            "make it a judge criterion or use 'explicit'"
        )
    if criterion.polarity == "negative" and not form.takes_negative:
        return (
            f"polarity is negative, but under aggregation {aggregation!r} a judge grades how well "
            "the response does; say what is wanted and make it positive"
        )
    category = criterion.params.get("category")
    if aggregation == "rar" and category not in CATEGORY_WEIGHTS:
        return (
            f"params.category is {category!r}; aggregation 'rar' takes its weights from there: "
            f"use one of {', '.join(CATEGORY_WEIGHTS)}, or 'explicit' with weights of your own"
        )
    return ""


def _validate_criterion(criterion: Criterion) -> None:
    if not criterion.id:
        raise ValueError("a criterion has an empty id; give every criterion its own id")
    if not (math.isfinite(criterion.weight) and criterion.weight > 0):
        raise ValueError(
            f"criterion {criterion.id!r}: weight is {criterion.weight:g}, it must be finite and"
            " above 0; mark what counts against a response by polarity: negative"
        )
    if criterion.kind == "rule":
        _validate_rule(criterion)
    elif not criterion.description.strip():
        raise ValueError(f"criterion {criterion.id!r}: a judge criterion needs a description")


def _validate_rule(criterion: Criterion) -> None:
    """A check that exists, with parameters that fit it: else it would silently be left out."""
    try:
        problem = registry.parameter_problem(criterion)
        known = registry.get(criterion.check).parameters
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


def counted_under(criterion: Criterion) -> str:
    """The name under which criteria of many prompts are summed up: their check, or `judge`.

    Ids are of no use there: c1 is another statement in every prompt.
    """
    return criterion.check if criterion.kind == "rule" else "judge"


def score_response(rubric: Rubric, results: Sequence[CriterionResult]) -> Score:
    """Turn the verdicts on one response into its score (docs/algorithm.md, "Reward").

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
    counted: list[tuple[Criterion, CriterionResult]] = []
    for criterion, result in zip(rubric.criteria, ordered, strict=True):
        if result.verdict is not Verdict.UNVERIFIABLE:
            counted.append((criterion, result))
        elif not result.for_every_response:
            return Unscored(f"criterion {criterion.id}: {result.reason}", ordered)
    if not counted:
        return Unscored("no criterion of the rubric can be verified", ordered)
    reward = RULES[rubric.aggregation].reward(counted)
    if reward is None:
        return Unscored("no positive criterion of the rubric can be verified", ordered)
    if not math.isfinite(reward):
        return Unscored(f"the reward of aggregation {rubric.aggregation!r} is {reward}", ordered)
    good, bad = _sides(rubric, counted)
    return Scored(reward=reward, results=ordered, satisfied=good, unmet=bad)


def no_answer_result(rubric: Rubric, criterion: Criterion) -> CriterionResult:
    """What holds of a response without an answer, nobody being asked: the statement is not true of
    it, and its grade is the lowest."""
    form = judge_format(rubric)
    if criterion.kind == "judge" and form.grading is not None:
        return graded_result(criterion.id, form, 1)
    return CriterionResult(criterion.id, Verdict.NOT_FOLLOWED, "no answer")


def score_no_answer(rubric: Rubric, blank: Score) -> Score:
    """The score of a response without an answer (`answer_part`), given that of blank text.

    Blank text would meet some limits, and thinking for ever would then be worth more than an
    answer. `blank` only says which criteria are left out for every response, or that the scorer
    failed (`Unscored` without results), which stays as it is.
    """
    if not blank.results:
        return blank
    by_id = {criterion.id: criterion for criterion in rubric.criteria}
    results = [
        result
        if result.verdict is Verdict.UNVERIFIABLE and result.for_every_response
        else no_answer_result(rubric, by_id[result.criterion_id])
        for result in blank.results
    ]
    return score_response(rubric, results)


def _sides(rubric: Rubric, counted: Counted) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of the criteria that are satisfied, and of those that are unmet.

    One grade for the whole rubric does not say which of its criteria fails: all of them count as
    satisfied when the grade is high enough, and as unmet otherwise.
    """
    if judge_format(rubric).one_grade:
        ids = tuple(criterion.id for criterion, _ in counted)
        high = all(result.verdict is Verdict.FOLLOWED for _, result in counted)
        return (ids, ()) if high else ((), ids)
    good = tuple(c.id for c, result in counted if is_satisfied(c, result))
    return good, tuple(c.id for c, result in counted if not is_satisfied(c, result))
