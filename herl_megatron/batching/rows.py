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
from herl_megatron.hindsight.known_methods import open_method
from herl_megatron.hindsight.method import Join, check_joins, plain_join
from herl_megatron.rubrics.breakdown import (
    credit_by_check,
    reward_by_source,
    rubric_mean,
    satisfied_by_check,
)
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
    """The rows of one group as a step of its own; `seed` draws random slots.

    A row without a reward has weight 0 and no reward: no number stands in for it.
    """
    (join,) = _joins([group], hindsight, [seed])
    return _joined(group, join, hindsight, algorithm)


def _joins(
    groups: Sequence[ScoredGroup], hindsight: HindsightConfig, seeds: Sequence[int]
) -> Sequence[Join]:
    """Which rows the groups of a step have, as the hindsight method says."""
    assert is_resolved(hindsight), "reference_compat is resolved by prepare"
    method = open_method(hindsight)
    if method is None:
        return [plain_join(group) for group in groups]
    joins = method.join_step(groups, seeds)
    check_joins(joins, groups, method)
    return joins


def _joined(
    group: ScoredGroup, join: Join, hindsight: HindsightConfig, algorithm: AlgorithmConfig
) -> GroupRows:
    """Rewards and advantages of a group's rows."""
    bonuses, origins = join.bonuses, join.origins
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
    seeds = [join_seed(run_seed, step=step, prompt_id=g.group.prompt.id) for g in groups]
    built = tuple(
        _joined(group, join, hindsight, algorithm)
        for group, join in zip(groups, _joins(groups, hindsight, seeds), strict=True)
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
        "train/tokens": float(sum(len(row.targets) for row in batch.rows)),
        "train/optimizer_steps_empty": float(len(steps) - len(batch.optimizer_steps)),
    }
    metrics |= {f"reward/check/{name}": x for name, x in satisfied_by_check(groups).items()}
    metrics |= rubric_mean(groups)
    metrics |= {f"reward/credit/{name}": x for name, x in credit_by_check(groups).items()}
    metrics |= {f"reward/source/{name}": x for name, x in reward_by_source(groups).items()}
    return StepRows(batch, built, metrics)


def _reward(group: ScoredGroup, origin: RowOrigin, bonuses: Sequence[float]) -> float | None:
    """The reward that a row trains on: that of its score, plus the bonus of a rollout."""
    if origin.replay_index is not None:
        return group.replays[origin.replay_index].reward
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
    assert len(completion.drawn_token_ids) == len(completion.log_probs), (
        f"prompt {group.group.prompt.id!r}: {len(completion.drawn_token_ids)} tokens but "
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
        drawn=completion.drawn,
    )
