"""A dead policy is found, and no living one taken for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import pytest

from herl_megatron.config.schema import RolloutConfig
from herl_megatron.rollout.liveness import DeadPolicyError, LivenessProbe, is_dead, require_alive
from herl_megatron.types import (
    Completion,
    FinishReason,
    GenerateRequest,
    Rollout,
    RolloutGroup,
    Scored,
    ScoredGroup,
    Unscored,
)
from tests.unit.rollout.fakes import make_prompts

SAME = [7] * 16
AFTER_ONE = [3, *[7] * 15]  # what a step at a learning rate of 3 left of the toy task's model
WORDS = list(range(16))


def response(
    tokens: Sequence[int], reason: FinishReason = "length", log_prob: float = 0.0
) -> Completion:
    log_probs = np.full(len(tokens), log_prob, np.float32)
    return Completion("r", np.array(tokens, np.int32), log_probs, reason, 5)


@pytest.mark.parametrize(
    ("responses", "dead"),
    [
        ([[SAME, SAME], [SAME, SAME]], True),
        ([[AFTER_ONE, AFTER_ONE], [AFTER_ONE, SAME]], True),
        ([[SAME], [[9] * 16]], True),  # each prompt has a token of its own
        ([[SAME, SAME]], True),
        ([[[1, 2] * 8] * 2, [[1, 2] * 8] * 2], True),  # the same text for different prompts
        ([[[1, 2] * 8] * 2], False),  # for one prompt only
        ([[SAME, SAME], [SAME, WORDS]], False),
        ([[[1, 2] * 8], [[2, 1] * 8]], False),
        ([[WORDS[:9] + [7] * 7]], False),  # not half of it
        ([[[7] * 7]], False),  # too short to tell
        ([], False),
    ],
)
def test_signs(responses: list[list[list[int]]], dead: bool) -> None:
    assert is_dead([[response(tokens) for tokens in one] for one in responses]) is dead


def test_who_stops_by_himself_is_alive() -> None:
    """Empty answers, or the same short one to everything, may be what the rewards taught; nobody
    who was taught gives either without any doubt."""
    assert not is_dead([[response([2], "stop", -1e-4)] * 4] * 4)
    assert not is_dead([[response([5, 2], "stop")] * 4] * 4)
    assert not is_dead([[response(SAME)], [response(SAME, "stop")]])


def test_beginnings_may_be_the_same() -> None:
    begun = [[response(WORDS)] * 2] * 3
    assert is_dead(begun)
    assert not is_dead(begun, same_is_dead=False)
    assert is_dead([[response(AFTER_ONE)] * 2] * 3, same_is_dead=False)


@pytest.mark.parametrize("length", range(1, 8))
def test_one_certain_token_is_a_sign_at_any_length(length: int) -> None:
    """The end token, and what a limit below the one for repetition leaves."""
    short = [7] * length
    assert is_dead([[response(short)] * 2] * 3)
    assert not is_dead([[response(short, log_prob=-1e-5)] * 2] * 3)
    assert not is_dead([[response(short)] * 2, [response([8] * length)] * 2])
    assert not is_dead([[response(short)]])
    assert not is_dead([[response([]), response([])]])
    assert is_dead([[response([2], "stop")] * 4] * 4)


def groups(
    tokens: Sequence[int],
    *scores: float | None,
    reason: FinishReason = "length",
    log_prob: float = 0.0,
) -> list[ScoredGroup]:
    """Three of two rollouts each; none of the scores is no score."""
    rollouts = tuple(Rollout(index, response(tokens, reason, log_prob), "") for index in range(2))
    given = (
        tuple(Unscored("") if score is None else Scored(score, (), (), ()) for score in scores)
        or (Unscored(""),) * 2
    )
    return [
        ScoredGroup(RolloutGroup(prompt, np.zeros(1, np.int32), rollouts), given)
        for prompt in make_prompts(3)
    ]


def test_rollouts_of_a_step() -> None:
    with pytest.raises(DeadPolicyError) as caught:
        require_alive(groups(AFTER_ONE), 4)
    for part in (
        "step 4: the policy is dead: all 6 responses to 3 prompts",
        "weight version 5",
        "6 of them end in token 7",
        "optimizer.lr",
    ):
        assert part in str(caught.value)
    require_alive(groups([1, 2, 3, 4] * 4)[:1], 4)


@pytest.mark.parametrize(
    ("scores", "full", "dead"),
    [
        ((1.0, 1.0), 1.0, False),  # "repeat the word owl", and it did
        ((0.5, 0.0), 1.0, False),  # told apart
        ((0.0, 0.0), 1.0, True),
        ((0.9, 0.9), 1.0, True),
        ((0.9, 0.9), 0.9, False),
        ((1.0, None), 1.0, False),
        ((0.0, None), 1.0, True),
    ],
)
@pytest.mark.parametrize(("tokens", "reason"), [(SAME, "length"), ([2], "stop")])
def test_rewards_tell_what_is_an_answer(
    tokens: list[int],
    reason: FinishReason,
    scores: tuple[float | None, ...],
    full: float,
    dead: bool,
) -> None:
    with pytest.raises(DeadPolicyError) if dead else nullcontext():
        require_alive(groups(tokens, *scores, reason=reason), 4, full_reward=full)


def test_one_group_with_spread_is_enough() -> None:
    flat, told = groups(SAME, 0.0, 0.0), groups(SAME, 0.0, 1.0)
    require_alive([*flat[:2], told[2]], 4)
    with pytest.raises(DeadPolicyError):  # groups differ, but in none is anything to learn
        require_alive([*flat[:2], groups(SAME, 0.5, 0.5)[2]], 4)


@dataclass
class Engine:
    tokens: Sequence[int]
    log_prob: float = 0.0
    alive_from: int = 999
    """From which prompt on it counts up instead."""
    reason: FinishReason = "length"
    asked: list[GenerateRequest] = field(default_factory=list)

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self.asked += requests
        answers = []
        for request in requests:
            number = int(request.prompt_token_ids[0])
            tokens = self.tokens if number < self.alive_from else WORDS
            cut = tokens[: request.sampling.max_tokens]
            answers.append(response(cut, self.reason, self.log_prob))
        return answers


def probe(engine: Engine, prompts: int = 4, **rollout: float) -> LivenessProbe:
    ids = [np.array([number, 2], np.int32) for number in range(prompts)]
    section = RolloutConfig.model_validate(rollout)
    return LivenessProbe(engine, ids, section, seed=0)  # type: ignore[arg-type]


def test_the_probe_asks_once_a_version_and_as_rollouts_are_drawn() -> None:
    engine = Engine(WORDS)
    probing = probe(engine, temperature=0.5, max_response_tokens=300)

    async def run() -> None:
        for version in (3, 3, 4):
            await probing.require(version)

    asyncio.run(run())
    assert len(engine.asked) == 16  # two samples of four prompts, twice
    assert {r.sampling.max_tokens for r in engine.asked} == {16}
    assert {r.sampling.temperature for r in engine.asked} == {0.5}
    assert len({r.seed for r in engine.asked}) == len({r.request_id for r in engine.asked}) == 16


def test_the_probe_stops_a_dead_policy_again_and_again() -> None:
    probing = probe(Engine(AFTER_ONE))
    for _ in range(2):
        with pytest.raises(DeadPolicyError, match="all 8 responses to 4 prompts"):
            asyncio.run(probing.require(1))


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_the_probe_takes_no_log_probs_that_are_not_finite(value: float, tokens: int) -> None:
    """Whatever the tokens are, and however few of them there may be."""
    probing = probe(Engine(WORDS, log_prob=value), max_response_tokens=tokens)
    with pytest.raises(DeadPolicyError, match=f"not finite for {8 * min(tokens, 16)} of"):
        asyncio.run(probing.require(1))


def test_short_answers_are_probed_too() -> None:
    asyncio.run(probe(Engine(WORDS), max_response_tokens=7).require(1))
    asyncio.run(probe(Engine(SAME, log_prob=-1e-4), max_response_tokens=7).require(1))
    with pytest.raises(DeadPolicyError):
        asyncio.run(probe(Engine(SAME), max_response_tokens=7).require(1))
    with pytest.raises(DeadPolicyError):
        asyncio.run(probe(Engine([2], reason="stop")).require(1))


def test_the_probe_has_no_rewards_and_asks_for_certainty() -> None:
    """A policy that is only likely to repeat a token draws it, too."""
    asyncio.run(probe(Engine(SAME, log_prob=-0.01)).require(1))
    with pytest.raises(DeadPolicyError):
        asyncio.run(probe(Engine(SAME, log_prob=-1e-5)).require(1))


def test_a_dead_policy_need_not_be_certain_each_time() -> None:
    """Log-probs that a step at a learning rate of 3 left."""
    one = response([1202, *[415] * 15])
    one.log_probs[[2, 9, 13, 14]] = [-1.18e-5, -8.2e-6, -0.0242, -3.6e-7]
    assert is_dead([[one] * 2] * 4, same_is_dead=False)


@pytest.mark.parametrize(("alive_from", "asked"), [(3, 8), (4, 40), (19, 40), (20, 40)])
def test_few_prompts_with_one_answer_are_not_all(alive_from: int, asked: int) -> None:
    engine = Engine(SAME, alive_from=alive_from)
    with pytest.raises(DeadPolicyError) if alive_from == 20 else nullcontext():
        asyncio.run(probe(engine, prompts=20).require(1))
    assert len(engine.asked) == len({r.request_id for r in engine.asked}) == asked


def test_what_rollouts_were_rewarded_for_is_an_answer_to_the_probe() -> None:
    """The same token only, and only as of the last rollouts."""
    probing = probe(Engine(SAME))
    probing.see(groups(SAME, 1.0, 1.0))
    asyncio.run(probing.require(1))
    probing.see(groups([9] * 16, 1.0, 1.0))
    with pytest.raises(DeadPolicyError):
        asyncio.run(probing.require(2))
    probing.see(groups(SAME, 1.0, 1.0))
    probing.see(groups(WORDS, 1.0, 1.0))
    with pytest.raises(DeadPolicyError):
        asyncio.run(probing.require(2))
