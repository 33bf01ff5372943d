"""What a step's groups say about the policy and about hindsight, as counts and means.

Reported rewards are those of the rollouts that the policy drew from x, without bonus, revisions or
copies: the curve is the policy's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from herl_megatron.algos.advantages import GroupOutcome
from herl_megatron.types import RowOrigin, Scored, ScoredGroup


@dataclass(frozen=True)
class GroupStats:
    """Counts of one group. Sums are over its rollouts (or revisions) that have a reward."""

    rollouts: int
    unscored: int
    """Rollouts without a reward."""
    reward_sum: float
    """Rubric rewards of the scored rollouts, no bonus."""
    all_satisfied: int
    """Scored rollouts that miss no criterion and satisfy at least one."""
    response_tokens: int
    truncated: int
    """Rollouts that ended by length."""
    experiences: int
    experiences_too_long: int
    revisions: int
    revisions_unscored: int
    accepted: int
    """Revisions that joined."""
    copied: int
    """Rows overwritten by a copy of the best one (`no_qualified: copy_best`)."""
    gain_sum: float
    """Revision reward minus draft reward, over scored revisions."""
    bonus_sum: float
    replays: int
    """Rows that replay a failed rollout."""
    replays_impossible: int
    """Failed rollouts whose instruction cannot be reduced."""
    outcome: GroupOutcome


def group_stats(
    group: ScoredGroup,
    bonuses: Sequence[float],
    origins: Sequence[RowOrigin],
    outcome: GroupOutcome,
) -> GroupStats:
    """Count one group after its join."""
    scored = [score for score in group.scores if isinstance(score, Scored)]
    gains = []
    for revision in group.revisions:
        draft = group.scores[revision.experience.rollout_index]
        if isinstance(revision.score, Scored) and isinstance(draft, Scored):
            gains.append(revision.score.reward - draft.reward)
    completions = [rollout.completion for rollout in group.group.rollouts]
    accepted = sum(origin.revision_index is not None for origin in origins)
    return GroupStats(
        rollouts=len(group.scores),
        unscored=len(group.scores) - len(scored),
        reward_sum=sum(score.reward for score in scored),
        all_satisfied=sum(bool(score.satisfied) and not score.unmet for score in scored),
        response_tokens=sum(len(completion.drawn_token_ids) for completion in completions),
        truncated=sum(completion.finish_reason == "length" for completion in completions),
        experiences=len({revision.experience.rollout_index for revision in group.revisions}),
        experiences_too_long=group.experiences_too_long,
        revisions=len(group.revisions),
        revisions_unscored=len(group.revisions) - len(gains),
        accepted=accepted,
        copied=sum(o.replaces is not None and o.revision_index is None for o in origins),
        gain_sum=sum(gains),
        bonus_sum=sum(bonuses),
        replays=sum(origin.replay_index is not None for origin in origins),
        replays_impossible=group.replays_impossible,
        outcome=outcome,
    )


def step_metrics(groups: Sequence[GroupStats]) -> dict[str, float]:
    """Add up a step's groups. A mean over nothing is left out rather than given a number."""
    metrics = _of_rollouts(groups) | _of_hindsight(groups)
    metrics["train/groups_zero_spread"] = sum(group.outcome == "zero_spread" for group in groups)
    metrics["train/groups_too_few"] = sum(group.outcome == "too_few" for group in groups)
    return {name: float(value) for name, value in metrics.items()}


def _of_rollouts(groups: Sequence[GroupStats]) -> dict[str, float]:
    scored = sum(group.rollouts - group.unscored for group in groups)
    rollouts = sum(group.rollouts for group in groups)
    metrics: dict[str, float] = {"scoring/unscored": sum(group.unscored for group in groups)}
    if scored:
        metrics["reward/mean"] = sum(group.reward_sum for group in groups) / scored
        metrics["reward/all_satisfied"] = sum(group.all_satisfied for group in groups) / scored
    if rollouts:
        metrics["rollout/response_tokens"] = sum(g.response_tokens for g in groups) / rollouts
        metrics["rollout/truncated"] = sum(group.truncated for group in groups) / rollouts
    return metrics


def _of_hindsight(groups: Sequence[GroupStats]) -> dict[str, float]:
    revised = sum(group.revisions - group.revisions_unscored for group in groups)
    metrics: dict[str, float] = {
        "scoring/revisions_unscored": sum(group.revisions_unscored for group in groups),
        "hindsight/experiences": sum(group.experiences for group in groups),
        "hindsight/experiences_too_long": sum(group.experiences_too_long for group in groups),
        "hindsight/revisions": sum(group.revisions for group in groups),
        "hindsight/accepted": sum(group.accepted for group in groups),
        "hindsight/copied": sum(group.copied for group in groups),
        "hindsight/bonus_sum": sum(group.bonus_sum for group in groups),
        "hindsight/replays": sum(group.replays for group in groups),
        "hindsight/replays_impossible": sum(group.replays_impossible for group in groups),
    }
    if revised:
        metrics["hindsight/gain"] = sum(group.gain_sum for group in groups) / revised
    return metrics
