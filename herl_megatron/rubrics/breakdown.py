"""Scores of many prompts, by check and by where the prompts come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from herl_megatron.rubrics.credit import credit
from herl_megatron.rubrics.rubric import counted_under
from herl_megatron.types import Rubric, Scored, ScoredGroup


def satisfied_by_check(groups: Iterable[ScoredGroup]) -> dict[str, float]:
    """Share of verdicts on the policy's own responses that are met, by check name in order;
    statements under `judge`. Unscored responses have none."""
    hits: dict[str, list[int]] = {}
    for group in groups:
        names = {c.id: counted_under(c) for c in group.group.prompt.rubric.criteria}
        for score in group.scores:
            if isinstance(score, Scored):
                for criterion_id in score.satisfied:
                    hits.setdefault(names[criterion_id], []).append(1)
                for criterion_id in score.unmet:
                    hits.setdefault(names[criterion_id], []).append(0)
    return {name: sum(values) / len(values) for name, values in sorted(hits.items())}


def credits_of(rubric: Rubric, score: Scored) -> Iterator[tuple[str, float]]:
    """Check name and credit, polarity applied, of each criterion whose check returned a number."""
    by_id = {criterion.id: criterion for criterion in rubric.criteria}
    for result in score.results:
        criterion = by_id[result.criterion_id]
        if criterion.kind == "rule" and result.grade is not None:
            yield criterion.check, credit(criterion, result)


def credit_by_check(groups: Iterable[ScoredGroup]) -> dict[str, float]:
    """Mean credit on the policy's own scored responses, of the checks that return numbers, by name
    in order."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for score in group.scores:
            if isinstance(score, Scored):
                for name, value in credits_of(group.group.prompt.rubric, score):
                    found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def rubric_mean(groups: Iterable[ScoredGroup]) -> dict[str, float]:
    """`reward/rubric_mean`: mean of the rubric's rewards where `scoring.group_reward` gives others;
    empty without it."""
    rewards = [
        score.rubric_reward
        for group in groups
        for score in group.scores
        if isinstance(score, Scored) and score.rubric_reward is not None
    ]
    return {"reward/rubric_mean": sum(rewards) / len(rewards)} if rewards else {}


def reward_by_source(groups: Iterable[ScoredGroup]) -> dict[str, float]:
    """Mean reward of the scored responses by the prompts' `source`, in order; prompts that name
    none are left out."""
    rewards: dict[str, list[float]] = {}
    for group in groups:
        if source := group.group.prompt.source:
            scored = [score.reward for score in group.scores if isinstance(score, Scored)]
            rewards.setdefault(source, []).extend(scored)
    return {name: sum(values) / len(values) for name, values in sorted(rewards.items()) if values}
