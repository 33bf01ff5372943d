"""Which rollouts of a group become hindsight experience (docs/algorithm.md, "Select")."""

from __future__ import annotations

import random
from collections.abc import Sequence

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.types import Score, Scored

REWARD_TOLERANCE = 1e-6
"""Rewards closer than this are equal: sums of weights differ in their last bits."""


def select_experiences(
    scores: Sequence[Score], config: HindsightConfig, seed: int
) -> tuple[int, ...]:
    """Indices of the rollouts to revise, in order of preference; empty if none is needed.

    A group whose best reward reaches `threshold` needs none. `best_failed`: the rollouts tied for
    the group's best reward; `all_failed`: every scored rollout; both better first, then more
    satisfied criteria, then lower index. `random`: a choice by `seed` among all. At most
    `max_experiences`. Unscored rollouts and those that miss no criterion are never chosen: there
    is nothing that a revision could be told to fix.
    """
    rewards = {i: score.reward for i, score in enumerate(scores) if isinstance(score, Scored)}
    if not rewards or max(rewards.values()) >= config.threshold:
        return ()
    best = max(rewards.values())
    failed = [i for i, s in enumerate(scores) if isinstance(s, Scored) and s.unmet]
    if config.select == "random":
        count = min(config.max_experiences, len(failed))
        return tuple(random.Random(seed).sample(failed, count))
    if config.select == "best_failed":
        failed = [i for i in failed if rewards[i] >= best - REWARD_TOLERANCE]
        failed.sort(key=lambda i: (-_satisfied(scores[i]), i))
    else:
        failed.sort(key=lambda i: (-rewards[i], -_satisfied(scores[i]), i))
    return tuple(failed[: config.max_experiences])


def _satisfied(score: Score) -> int:
    return len(score.satisfied) if isinstance(score, Scored) else 0
