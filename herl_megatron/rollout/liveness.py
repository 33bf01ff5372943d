"""Whether the policy still answers, or its weights are finite and it is lost all the same.

It may compute NaN: log-probs of what it drew are not finite (`not_finite`). Or it is dead: a step
at far too high a learning rate leaves weights behind which nothing depends on the prompt any more.
Its distribution has one token left, and every response repeats that until the limit cuts it, or
ends at once where it is the end token. All rewards of a group are equal then, no row has weight,
and nothing else in a run would ever notice.

The sign must be one that no living policy gives, however badly it does. Either all responses of a
step are cut at their limit, and the second half of each is one token, or all of them, of different
prompts, are the same from the first token on; responses of fewer than `_LEAST_TOKENS` tokens do not
say that much. Or, at any length, all of them are the same one token again and again, certain each
time (`_CERTAIN`): a policy that was taught to answer nothing hardly ever is that sure of it.

What is rewarded may look like it ("repeat the word owl"), so rollouts are dead only where no group
has spread among its rewards and their mean is not full. A probe has no rewards: there a repeated
token must be all that is left of the distribution (`_ONE_HOT`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from herl_megatron.config.schema import RolloutConfig
from herl_megatron.engine import RolloutEngine
from herl_megatron.errors import LostPolicyError
from herl_megatron.seeds import derive_seed
from herl_megatron.types import Completion, GenerateRequest, IntArray, Scored, ScoredGroup

PROBED_PROMPTS = 32
_FIRST_PROMPTS = 4
"""The others are asked only where these look dead."""
_SAMPLES = 2
_PROBE_TOKENS = 16
_LEAST_TOKENS = 8
_CERTAIN = -1e-6
"""Log-prob above which a single token counts as the only one that the policy can draw."""
_ONE_HOT = -1e-4
"""The same for the median of repeated tokens, which are a sign already. Not for each: after a step
at a learning rate of 3 nearly all have 0.0, but some -0.02."""
_FULL_SLACK = 1e-6


class DeadPolicyError(LostPolicyError):
    """The policy's answers do not depend on the prompt any more, or it computes none.

    Attributes:
        version: of the weights that gave them, which are those after so many steps: a checkpoint of
            that step or a later one is of the dead policy too. None where it is not known.
    """

    def __init__(self, message: str, version: int | None = None) -> None:
        super().__init__(message)
        self.version = version


def not_finite(completions: Sequence[Completion]) -> str | None:
    """What to say of an engine where a sampled token has no log-prob: the weights compute NaN or
    overflow."""
    bad = [c for c in completions if not np.isfinite(c.log_probs).all()]
    if not bad:
        return None
    tokens = sum(len(c.token_ids) for c in completions)
    count = sum(int((~np.isfinite(c.log_probs)).sum()) for c in bad)
    return (
        f"gave log-probs that are not finite for {count} of {tokens} sampled tokens (first:"
        f" {bad[0].request_id}, weight version {bad[0].weight_version}): the weights that it serves"
        " compute NaN or infinity. Likely causes: weights that grew without bound (look at"
        " train/largest_weight; lower optimizer.lr), weights that were damaged on their way to the"
        " engine (set parity.every to 1), or a dtype that the model does not fit into"
    )


def is_dead(responses: Sequence[Sequence[Completion]], *, same_is_dead: bool = True) -> bool:
    """Whether these responses, by prompt, look like a dead policy's (module docstring).

    same_is_dead: false for beginnings of responses without rewards, which may well be the same
        everywhere, and repeat a token that is likely rather than certain.
    """
    every = [response for of_prompt in responses for response in of_prompt]
    if not every:
        return False
    if _one_certain_token(every):
        return True
    if not all(_runs_on(response) for response in every):
        return False
    if all(_ends_in_one_token(response) for response in every):
        return same_is_dead or _tails_are_one_hot(every)
    first = every[0].token_ids
    same = all(np.array_equal(response.token_ids, first) for response in every)
    return same_is_dead and same and len(responses) > 1


def require_alive(groups: Sequence[ScoredGroup], step: int, *, full_reward: float = 1.0) -> None:
    """Stop a run whose rollouts of `step` are a dead policy's.

    full_reward: mean reward at which they are right, whatever they look like.

    Raises:
        DeadPolicyError: they are.
    """
    responses = responses_by_prompt(groups)
    if is_dead(responses) and not _earns(groups, full_reward):
        raise DeadPolicyError(f"step {step}: {dead_message(responses)}", _version(responses))


def responses_by_prompt(groups: Sequence[ScoredGroup]) -> list[list[Completion]]:
    """The rollouts of each different prompt."""
    by_prompt: dict[str, list[Completion]] = {}
    for group in groups:
        drawn = [_as_drawn(rollout.completion) for rollout in group.group.rollouts]
        by_prompt.setdefault(group.group.prompt.id, []).extend(drawn)
    return list(by_prompt.values())


def _as_drawn(completion: Completion) -> Completion:
    """Without what a conversation told the policy: that is not its own."""
    return replace(completion, token_ids=completion.drawn_token_ids, drawn=None)


def dead_message(responses: Sequence[Sequence[Completion]]) -> str:
    """What was seen of a dead policy, and what may have killed it."""
    every = [response for of_prompt in responses for response in of_prompt]
    (token, count), *_ = Counter(int(r.token_ids[-1]) for r in every).most_common(1)
    return (
        f"the policy is dead: all {len(every)} responses to {len(responses)} prompts, drawn with"
        f" weight version {_version(responses)}, are or repeat one token, or each other, up to"
        f" their limit ({count} of them end in token {token}). The weights are finite, but nothing"
        " in them depends on the prompt any more, so every further step would learn nothing. Likely"
        " causes: optimizer.lr is too high or its warm-up too short (look at train/grad_norm and"
        " train/largest_weight of the last steps), or the model itself answers so from the start"
    )


def _version(responses: Sequence[Sequence[Completion]]) -> int:
    return max(response.weight_version for of_prompt in responses for response in of_prompt)


class LivenessProbe:
    """Asks the engine for a few short answers before weights are kept for good.

    Rollouts show a dead policy one step late, when a checkpoint of it may have taken the place of
    a good one.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        prompts: Sequence[IntArray],
        rollout: RolloutConfig,
        *,
        seed: int,
    ) -> None:
        """prompts: `[prompt]` each; `PROBED_PROMPTS` will do."""
        self._engine = engine
        self._prompts = tuple(prompts)
        sampling = rollout.sampling()
        tokens = min(_PROBE_TOKENS, sampling.max_tokens)
        self._sampling = replace(sampling, max_tokens=tokens)
        self._seed = seed
        self._alive = -1
        self._rewarded: frozenset[int] = frozenset()

    def see(self, groups: Sequence[ScoredGroup]) -> None:
        """Learn from rollouts that passed `require_alive` which repeated tokens are an answer: a
        policy that is paid for repeating a word is not dead because it does."""
        responses = responses_by_prompt(groups)
        self._rewarded = _last_tokens(responses) if is_dead(responses) else frozenset()

    async def require(self, version: int) -> None:
        """Return when weight version `version`, which the engine serves, is known to answer.

        Raises:
            DeadPolicyError: it does not.
        """
        if version == self._alive:
            return
        responses: list[list[Completion]] = []
        while len(responses) < len(self._prompts):
            responses += await self._draw(version, len(responses))
            if not is_dead(responses, same_is_dead=False):
                break
        else:
            if not _last_tokens(responses) <= self._rewarded:
                raise DeadPolicyError(dead_message(responses), version)
        self._alive = version

    async def _draw(self, version: int, begin: int) -> list[list[Completion]]:
        """Answers to the first prompts, or to all from `begin` on."""
        end = len(self._prompts) if begin else _FIRST_PROMPTS
        requests = [
            GenerateRequest(
                request_id=f"alive-{version}-{position}-{sample}",
                prompt_token_ids=prompt,
                sampling=self._sampling,
                seed=derive_seed(self._seed, "alive", version, position, sample),
            )
            for position, prompt in enumerate(self._prompts[begin:end], begin)
            for sample in range(_SAMPLES)
        ]
        drawn = await self._engine.generate(requests)
        if problem := not_finite(drawn):
            said = f"the policy of weight version {version}: the engine {problem}"
            raise DeadPolicyError(said, version)
        return [drawn[at : at + _SAMPLES] for at in range(0, len(drawn), _SAMPLES)]


def _earns(groups: Sequence[ScoredGroup], full_reward: float) -> bool:
    """Whether rewards tell the responses apart, or are all that there is to get."""
    rewards = [
        [score.reward for score in group.scores if isinstance(score, Scored)] for group in groups
    ]
    if any(max(of_group) > min(of_group) for of_group in rewards if of_group):
        return True
    every = [reward for of_group in rewards for reward in of_group]
    return bool(every) and sum(every) / len(every) >= full_reward - _FULL_SLACK


def _last_tokens(responses: Sequence[Sequence[Completion]]) -> frozenset[int]:
    return frozenset(int(one.token_ids[-1]) for of_prompt in responses for one in of_prompt)


def _one_certain_token(every: Sequence[Completion]) -> bool:
    """There are several, and all are the same, of one token, which nothing else could have been."""
    first = every[0]
    return min(len(every) - 1, len(first.token_ids)) > 0 and all(
        response.finish_reason == first.finish_reason
        and np.array_equal(response.token_ids, first.token_ids)
        and bool((response.token_ids == first.token_ids[0]).all())
        and bool((response.log_probs > _CERTAIN).all())
        for response in every
    )


def _runs_on(response: Completion) -> bool:
    return response.finish_reason == "length" and len(response.token_ids) >= _LEAST_TOKENS


def _ends_in_one_token(response: Completion) -> bool:
    tail = response.token_ids[len(response.token_ids) // 2 :]
    return bool((tail == tail[0]).all())


def _tails_are_one_hot(every: Sequence[Completion]) -> bool:
    tails = [response.log_probs[len(response.token_ids) // 2 :] for response in every]
    return bool(np.median(np.concatenate(tails)) > _ONE_HOT)
