"""Group-relative advantages (docs/algorithm.md, "Advantage"; GRPO, arXiv 2402.03300, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from herl_megatron.algos.own_advantage import GroupRewards, OwnAdvantage
from herl_megatron.config.schema import AlgorithmConfig

SPREAD_TOLERANCE = 1e-6
"""Rewards closer than this are equal; dividing by such a spread would amplify rounding."""

GroupOutcome = Literal["trained", "zero_spread", "too_few"]


@dataclass(frozen=True)
class GroupAdvantages:
    """One advantage and one weight per row, `[rows]`; why the group trains or does not.

    Rows of weight 0 are masked from the loss; they and every row of a group that does not train
    have the advantage 0.
    """

    advantages: tuple[float, ...]
    weights: tuple[float, ...]
    outcome: GroupOutcome


def group_advantages(
    rewards: Sequence[float | None],
    on_policy: Sequence[bool],
    config: AlgorithmConfig,
    own: OwnAdvantage | None = None,
) -> GroupAdvantages:
    """A_j = (r_j - mean) / (std + eps) over the group's rows that have a reward.

    `rewards[j]` is None for a row without a valid reward: masked from the loss and from the mean.
    `on_policy[j]` is False for revisions; `baseline: on_policy` leaves them out of mean and std.
    std is the sample standard deviation (n - 1); without `normalize_std` nothing is divided.
    `own` gives the advantages of a group with a gradient in place of this formula.

    No advantage, every weight 0: `too_few`, fewer than `min_valid` rows give the baseline;
    `zero_spread`, all rewards are equal, or std is 0 where it divides (a revision compared with an
    on-policy baseline without spread would get an advantage of 1 / eps). With `zero_spread: keep`
    the latter's rows that have a reward stay in the loss, with weight 1 and the advantage 0.
    """
    valid = [reward for reward in rewards if reward is not None]
    scored = [0.0 if reward is None else 1.0 for reward in rewards]
    baseline = [
        reward
        for reward, own in zip(rewards, on_policy, strict=True)
        if reward is not None and (own or config.baseline == "with_revisions")
    ]
    if len(baseline) < config.min_valid:
        return _no_advantage([0.0] * len(rewards), "too_few")
    compared = baseline if config.normalize_std and own is None else valid
    if max(compared) - min(compared) < SPREAD_TOLERANCE:
        kept = scored if config.zero_spread == "keep" else [0.0] * len(rewards)
        return _no_advantage(kept, "zero_spread")
    if own is not None:
        group = GroupRewards(tuple(rewards), tuple(not sampled for sampled in on_policy))
        advantages = own(group)
    else:
        mean = fmean(baseline)
        scale = stdev(baseline) + config.advantage_eps if config.normalize_std else 1.0
        advantages = tuple(0.0 if r is None else (r - mean) / scale for r in rewards)
    return GroupAdvantages(
        advantages=advantages,
        weights=tuple(scored),
        outcome="trained",
    )


def _no_advantage(weights: Sequence[float], outcome: GroupOutcome) -> GroupAdvantages:
    return GroupAdvantages((0.0,) * len(weights), tuple(weights), outcome)
