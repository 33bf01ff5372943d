"""Small scored groups for tests: every array says which rollout or revision it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from herl_megatron.types import (
    Completion,
    Criterion,
    HindsightExperience,
    Message,
    Prompt,
    Revision,
    Rollout,
    RolloutGroup,
    Rubric,
    Score,
    Scored,
    ScoredGroup,
    Unscored,
)

PROMPT_IDS = np.array([1, 2, 3], np.int32)
CRITERIA = (
    Criterion("short", "judge", description="Be short."),
    Criterion("polite", "judge", description="Be polite.", weight=2.0),
)
PROMPT = Prompt("p0", (Message("user", "Say hello."),), Rubric(CRITERIA))


def make_score(
    reward: float | None, satisfied: Sequence[str] = ("short",), unmet: Sequence[str] = ("polite",)
) -> Score:
    """A score; None stands for a response that could not be scored."""
    if reward is None:
        return Unscored("judge: HTTP 401")
    return Scored(reward, (), tuple(satisfied), tuple(unmet))


def make_rollout(index: int, first_token: int) -> Rollout:
    """Two tokens, `first_token` and the one after, with log-probs that name them."""
    tokens = np.array([first_token, first_token + 1], np.int32)
    log_probs = -tokens.astype(np.float32) / np.float32(1000)
    return Rollout(index, Completion(f"r{first_token}", tokens, log_probs, "stop", 7), f"t{index}")


def make_group(
    rewards: Sequence[float | None],
    revisions: Sequence[tuple[int, float | None]] = (),
    *,
    prompt: Prompt = PROMPT,
    too_long: int = 0,
) -> ScoredGroup:
    """Rollout i has tokens 10i+100.., revision k `(draft, reward)` has tokens 10k+500.. ."""
    rollouts = tuple(make_rollout(i, 100 + 10 * i) for i in range(len(rewards)))
    made = tuple(
        Revision(
            HindsightExperience(
                draft, f"fix t{draft}", np.array([1, 2, 3, 90 + draft], np.int32), (), ("polite",)
            ),
            make_rollout(k, 500 + 10 * k),
            make_score(reward),
        )
        for k, (draft, reward) in enumerate(revisions)
    )
    scores = tuple(make_score(reward) for reward in rewards)
    return ScoredGroup(RolloutGroup(prompt, PROMPT_IDS, rollouts), scores, made, too_long)
