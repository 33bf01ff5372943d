"""Scores of many prompts, by check and by where the prompts come from."""

from __future__ import annotations

from collections.abc import Iterable

from herl_megatron.rubrics.rubric import counted_under
from herl_megatron.types import Scored, ScoredGroup


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


def reward_by_source(groups: Iterable[ScoredGroup]) -> dict[str, float]:
    """Mean reward of the scored responses by the prompts' `source`, in order; prompts that name
    none are left out."""
    rewards: dict[str, list[float]] = {}
    for group in groups:
        if source := group.group.prompt.source:
            scored = [score.reward for score in group.scores if isinstance(score, Scored)]
            rewards.setdefault(source, []).extend(scored)
    return {name: sum(values) / len(values) for name, values in sorted(rewards.items()) if values}
