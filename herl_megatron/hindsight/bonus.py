"""Bonus reward for rollouts that hindsight could improve (docs/algorithm.md, "Bonus")."""

from __future__ import annotations

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.types import Scored, ScoredGroup


def bonus_rewards(group: ScoredGroup, config: HindsightConfig) -> tuple[float, ...]:
    """One bonus per rollout: alpha * (max_j rt_ij - r_i) where it served as experience, else 0.

    With `clip_negative` a revision worse than its draft takes nothing away; the released HeRL code
    does not clip. Revisions without a score say nothing about their draft and are left out.
    """
    best: dict[int, float] = {}
    for revision in group.revisions:
        if isinstance(revision.score, Scored):
            index = revision.experience.rollout_index
            best[index] = max(revision.score.reward, best.get(index, revision.score.reward))
    bonuses = [0.0] * len(group.scores)
    for index, revised in best.items():
        draft = group.scores[index]
        assert isinstance(draft, Scored), f"rollout {index} is an experience without a score"
        gain = revised - draft.reward
        bonuses[index] = config.alpha * (max(gain, 0.0) if config.clip_negative else gain)
    return tuple(bonuses)
