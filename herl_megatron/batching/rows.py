"""From scored groups to the rows of a train batch: bonus, join, advantage, then whole rows.

Rows are built once from their sources and never edited, so a revision's tokens, log-probs, context
and reward always belong together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from herl_megatron.algos.advantages import group_advantages
from herl_megatron.algos.own_advantage import open_advantage
from herl_megatron.batching.row_stats import GroupStats, group_stats, step_metrics
from herl_megatron.config.reference_compat import is_resolved
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from herl_megatron.hindsight.bonus import bonus_rewards
from herl_megatron.hindsight.join import join_revisions
from herl_megatron.hindsight.replay import REPLAY_REWARD
from herl_megatron.rubrics.breakdown import reward_by_source, satisfied_by_check
from herl_megatron.seeds import join_seed
from herl_megatron.types import (
    RowOrigin,
    Scored,
    ScoredGroup,
    TrainBatch,
    TrainRow,
)


@dataclass(frozen=True, eq=False)
class GroupRows:
    """The joined rows of one group: every row, masked ones too, with where it comes from."""

    rows: tuple[TrainRow, ...]
    origins: tuple[RowOrigin, ...]
    stats: GroupStats


@dataclass(frozen=True, eq=False)
class StepRows:
    """One step's batch, the groups behind it (in order) and the step's metrics by name."""

    batch: TrainBatch
    groups: tuple[GroupRows, ...]
    metrics: Mapping[str, float]


def build_rows(
    group: ScoredGroup, hindsight: HindsightConfig, algorithm: AlgorithmConfig, seed: int
) -> GroupRows:
    """Bonus, join, replays and advantage of one group; `seed` draws random slots.

    A row without a reward has weight 0 and no reward: no number stands in for it.
    """
    assert is_resolved(hindsight), "reference_compat is resolved by prepare"
    bonuses = bonus_rewards(group, hindsight)
    origins = join_revisions(group, bonuses, hindsight, seed)
    origins += tuple(
        RowOrigin(replay.rollout_index, replay_index=number)
        for number, replay in enumerate(group.replays)
    )
    rewards = [_reward(group, origin, bonuses) for origin in origins]
    on_policy = [not origin.off_policy for origin in origins]
    result = group_advantages(rewards, on_policy, algorithm, open_advantage(algorithm))
    rows = tuple(
        _row(group, origin, hindsight, reward=reward, advantage=advantage, weight=weight)
        for origin, reward, advantage, weight in zip(
            origins, rewards, result.advantages, result.weights, strict=True
        )
    )
    return GroupRows(rows, origins, group_stats(group, bonuses, origins, result.outcome))


def build_train_batch(
    groups: Sequence[ScoredGroup],
    hindsight: HindsightConfig,
    algorithm: AlgorithmConfig,
    *,
    prompts_per_optimizer_step: int,
    run_seed: int,
    step: int,
) -> StepRows:
    """Rows of all groups, `prompts_per_optimizer_step` groups to an optimizer step, in order.

    Rows of weight 0 are left out: they cost no compute, and every mean of the loss counts weighted
    rows and their tokens only. An optimizer step without any row is left out and counted.
    """
    assert prompts_per_optimizer_step > 0, "prompts_per_optimizer_step must be positive"
    built = tuple(
        build_rows(
            group,
            hindsight,
            algorithm,
            join_seed(run_seed, step=step, prompt_id=group.group.prompt.id),
        )
        for group in groups
    )
    steps = [
        tuple(
            row
            for group in built[start : start + prompts_per_optimizer_step]
            for row in group.rows
            if row.weight > 0
        )
        for start in range(0, len(built), prompts_per_optimizer_step)
    ]
    batch = TrainBatch(tuple(rows for rows in steps if rows))
    metrics = step_metrics([group.stats for group in built]) | {
        "train/rows": float(len(batch.rows)),
        "train/tokens": float(sum(len(row.response_token_ids) for row in batch.rows)),
        "train/optimizer_steps_empty": float(len(steps) - len(batch.optimizer_steps)),
    }
    metrics |= {f"reward/check/{name}": x for name, x in satisfied_by_check(groups).items()}
    metrics |= {f"reward/source/{name}": x for name, x in reward_by_source(groups).items()}
    return StepRows(batch, built, metrics)


def _reward(group: ScoredGroup, origin: RowOrigin, bonuses: Sequence[float]) -> float | None:
    """The reward that a row trains on: rubric reward, plus the bonus of a rollout."""
    if origin.replay_index is not None:
        return REPLAY_REWARD
    if origin.revision_index is not None:
        score = group.revisions[origin.revision_index].score
        return score.reward if isinstance(score, Scored) else None
    score = group.scores[origin.rollout_index]
    return score.reward + bonuses[origin.rollout_index] if isinstance(score, Scored) else None


def _row(
    group: ScoredGroup,
    origin: RowOrigin,
    hindsight: HindsightConfig,
    *,
    reward: float | None,
    advantage: float,
    weight: float,
) -> TrainRow:
    context = group.group.prompt_token_ids
    if origin.revision_index is None:
        completion = group.group.rollouts[origin.rollout_index].completion
    else:
        revision = group.revisions[origin.revision_index]
        completion = revision.rollout.completion
        if hindsight.train_context == "experience":
            context = revision.experience.prompt_token_ids
    if origin.replay_index is not None:
        context = group.replays[origin.replay_index].prompt_token_ids
    assert len(completion.token_ids) == len(completion.log_probs), (
        f"prompt {group.group.prompt.id!r}: {len(completion.token_ids)} tokens but "
        f"{len(completion.log_probs)} log-probs"
    )
    return TrainRow(
        prompt_id=group.group.prompt.id,
        context_token_ids=context,
        response_token_ids=completion.token_ids,
        rollout_log_probs=completion.log_probs,
        reward=reward,
        advantage=advantage,
        off_policy=origin.off_policy,
        weight=weight,
    )
