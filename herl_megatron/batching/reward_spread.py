"""Steps from which nothing can be learnt, because all rewards of every group are equal.

One such step happens. Several in a row mean that a run spends its time for nothing, and which of
the causes it is can be read from the rollouts.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from herl_megatron.batching.row_stats import GroupStats
from herl_megatron.types import Scored, ScoredGroup

logger = logging.getLogger(__name__)

WARN_AFTER = 3
"""Steps without spread in a row that are worth a warning; again after as many more."""
_SATURATED = 0.999
_CHECKS_SHOWN = 3


class SpreadWatch:
    """Follows the steps of one run in order."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._latest: deque[Sequence[ScoredGroup]] = deque(maxlen=WARN_AFTER)

    def see(
        self, step: int, groups: Sequence[ScoredGroup], stats: Sequence[GroupStats]
    ) -> dict[str, float]:
        """Say and count a step in which no group gives a gradient.

        stats: of each group's joined rows, revisions included.

        Returns `train/no_spread`, 1 for such a step, else 0.
        """
        if any(group.outcome == "trained" for group in stats):
            self._in_a_row = 0
            return {"train/no_spread": 0.0}
        self._in_a_row += 1
        self._latest.append(groups)
        outcomes = Counter(group.outcome for group in stats)
        logger.info(
            "step %d: nothing to learn from: of %d groups %d have equal rewards and %d too few"
            " responses with a reward; mean reward %s",
            step,
            len(stats),
            outcomes["zero_spread"],
            outcomes["too_few"],
            _mean_reward(groups),
        )
        if self._in_a_row % WARN_AFTER == 0:
            logger.warning(
                "%d steps in a row without a gradient, the last is step %d: %s",
                self._in_a_row,
                step,
                likely_cause([group for groups in self._latest for group in groups]),
            )
        return {"train/no_spread": 1.0}


def likely_cause(groups: Sequence[ScoredGroup]) -> str:
    """Why these groups, none of which has spread, have none, as far as their rollouts tell."""
    scores = [score for group in groups for score in group.scores]
    scored = [score for score in scores if isinstance(score, Scored)]
    causes = []
    if unscored := len(scores) - len(scored):
        causes.append(
            f"{unscored} of {len(scores)} responses have no reward (scoring/unscored; their reasons"
            " are in rollouts/)"
        )
    if all(_one_answer(group) for group in groups):
        causes.append(
            "all responses to a prompt are the same: rollout.temperature is too low, or the policy"
            " has collapsed or its weights are dead (was optimizer.lr too high?)"
        )
    if scored and min(map(_by_rubric, scored)) >= _SATURATED:
        causes.append(
            "every response has the full reward: the prompts are too easy by now; give harder ones"
            " or more criteria"
        )
    elif never := _never_met(groups):
        shown = ", ".join(never[:_CHECKS_SHOWN])
        causes.append(
            f"no response meets {shown}{', ...' if len(never) > _CHECKS_SHOWN else ''}: is it a"
            " criterion that can be met, within rollout.max_response_tokens?"
        )
    return "; ".join(causes) or (
        "the responses differ but their rewards do not: criteria that all of them meet or miss"
        " together; raise rollout.group_size or give finer criteria"
    )


def _by_rubric(score: Scored) -> float:
    """A group reward has a scale of its own."""
    return score.reward if score.rubric_reward is None else score.rubric_reward


def _one_answer(group: ScoredGroup) -> bool:
    tokens = [rollout.completion.token_ids for rollout in group.group.rollouts]
    return all(np.array_equal(one, tokens[0]) for one in tokens)


def _never_met(groups: Sequence[ScoredGroup]) -> list[str]:
    """Checks (statements under `judge`) that some response was held to and none satisfies."""
    met: dict[str, bool] = {}
    for group in groups:
        names = {c.id: c.check or c.kind for c in group.group.prompt.rubric.criteria}
        for score in group.scores:
            if isinstance(score, Scored):
                met |= {names[one]: True for one in score.satisfied}
                met |= {names[one]: met.get(names[one], False) for one in score.unmet}
    return [name for name, ever in met.items() if not ever]


def _mean_reward(groups: Sequence[ScoredGroup]) -> str:
    rewards = [s.reward for group in groups for s in group.scores if isinstance(s, Scored)]
    return f"{sum(rewards) / len(rewards):.3f}" if rewards else "unknown"
