"""Which revisions join a group, and in whose place (docs/algorithm.md, "Join")."""

from __future__ import annotations

import random
from collections.abc import Sequence

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.select import REWARD_TOLERANCE
from herl_megatron.types import RowOrigin, Scored, ScoredGroup


def join_revisions(
    group: ScoredGroup, bonuses: Sequence[float], config: HindsightConfig, seed: int
) -> tuple[RowOrigin, ...]:
    """The rows of the joined group: rollouts in order, replaced where a revision took the place.

    Revisions are ranked by reward and compared with the group's best reward by the rubric, without
    bonus. Places are drawn among scored rollouts; an unscored one has no reward to be the worst.
    Appended revisions follow the rollouts.
    """
    rewards = _rewards(group)
    rows = [RowOrigin(index) for index in range(len(group.scores))]
    accepted = _qualified(group, rewards, config)
    if not accepted:
        if config.no_qualified == "copy_best" and group.revisions:
            best = max(rewards, key=lambda index: (rewards[index], -index))
            slot = random.Random(seed).choice(sorted(rewards))
            rows[slot] = RowOrigin(best, replaces=slot)
        return tuple(rows)
    if config.replace == "append":
        return (*rows, *(_origin(group, revision, None) for revision in accepted))
    slots = _slots(rewards, bonuses, config, seed)
    # There may be fewer scored rollouts than accepted revisions: the best revisions go first.
    for revision, slot in zip(accepted, slots, strict=False):
        rows[slot] = _origin(group, revision, slot)
    return tuple(rows)


def _rewards(group: ScoredGroup) -> dict[int, float]:
    return {i: score.reward for i, score in enumerate(group.scores) if isinstance(score, Scored)}


def _qualified(group: ScoredGroup, rewards: dict[int, float], config: HindsightConfig) -> list[int]:
    """Positions of the revisions that join, best first, earlier first among equals; one without a
    score never does, whatever `accept` is.

    One that was cut at the length limit has no end: learning from it is learning not to end.
    """
    scored = {
        i: revision.score.reward
        for i, revision in enumerate(group.revisions)
        if isinstance(revision.score, Scored)
        and (config.join_cut or revision.rollout.completion.finish_reason != "length")
    }
    if not scored:
        return []
    best = max(rewards.values())
    if config.accept == "better":
        good = [i for i, reward in scored.items() if reward > best + REWARD_TOLERANCE]
    elif config.accept == "not_worse":
        good = [i for i, reward in scored.items() if reward >= best - REWARD_TOLERANCE]
    else:
        good = list(scored)
    return sorted(good, key=lambda i: (-scored[i], i))[: config.replace_top_n]


def _slots(
    rewards: dict[int, float], bonuses: Sequence[float], config: HindsightConfig, seed: int
) -> list[int]:
    """Rollouts in the order in which they give way.

    `worst`: the lowest reward first, rows that earned a bonus last so that the bonus is not lost
    with its row; the lower index among equals. `random`: any order, by `seed`.
    """
    if config.replace == "random":
        return random.Random(seed).sample(sorted(rewards), len(rewards))
    return sorted(rewards, key=lambda i: (bonuses[i] > 0, rewards[i] + bonuses[i], i))


def _origin(group: ScoredGroup, revision: int, slot: int | None) -> RowOrigin:
    draft = group.revisions[revision].experience.rollout_index
    return RowOrigin(draft, revision_index=revision, replaces=slot)
