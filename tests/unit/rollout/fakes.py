"""An engine, a scorer and a tokenizer whose answers depend on what they are asked alone.

Delays are drawn apart from the answers, so that a test can shuffle the order of arrival.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import numpy as np

from herl_megatron.engine import Bucket, EngineUsage
from herl_megatron.types import (
    Completion,
    Criterion,
    CriterionResult,
    GenerateRequest,
    IntArray,
    Message,
    Prompt,
    Rubric,
    Score,
    Scored,
    Unscored,
    Verdict,
)

CRITERIA = tuple(Criterion(f"c{i}", "judge", description=f"Rule {i}.") for i in range(4))


def make_prompts(count: int) -> list[Prompt]:
    """Prompts `q0`, `q1`, ... with four criteria each."""
    return [
        Prompt(f"q{i}", (Message("user", f"Question {i}."),), Rubric(CRITERIA))
        for i in range(count)
    ]


class CharTokenizer:
    """One id per character; `decode` undoes `plain_ids`."""

    def prompt_ids(self, messages: Sequence[Message]) -> IntArray:
        return self.plain_ids("".join(f"{m.role}>{m.content}|" for m in messages) + "assistant>")

    def plain_ids(self, text: str) -> IntArray:
        return np.array([ord(character) for character in text], np.int32)

    def decode(self, ids: IntArray) -> str:
        return "".join(chr(i) for i in ids)

    def reply_ids(self, messages: Sequence[Message], *, ended: bool) -> IntArray:
        return np.concatenate([self.plain_ids("" if ended else "|"), self.prompt_ids(messages)])


class RefusingEngine:
    """A `RolloutEngine` that refuses every call; a test's engine has those that it is asked."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        raise NotImplementedError

    async def abort(self, request_ids: Sequence[str]) -> None:
        raise NotImplementedError

    async def score_tokens(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[np.ndarray]:
        raise NotImplementedError

    async def start_weight_update(self) -> None:
        raise NotImplementedError

    async def load_bucket(self, bucket: Bucket) -> None:
        raise NotImplementedError

    async def finish_weight_update(self, weight_version: int) -> None:
        raise NotImplementedError

    async def weight_version(self) -> int:
        raise NotImplementedError

    async def sleep(self, level: int) -> None:
        raise NotImplementedError

    async def wake(self) -> None:
        raise NotImplementedError

    async def usage(self) -> EngineUsage:
        raise NotImplementedError

    async def shutdown(self) -> None:
        raise NotImplementedError


class FakeEngine(RefusingEngine):
    """Draws letters from the request's seed; waits by its own delay generator."""

    def __init__(self, delay_seed: int | None = None, events: list[str] | None = None) -> None:
        self._delays = None if delay_seed is None else random.Random(delay_seed)
        self.events = [] if events is None else events
        self.requests: list[GenerateRequest] = []
        self.aborted: list[str] = []

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self.requests.extend(requests)
        name = requests[0].request_id.rsplit("-", 1)
        self.events.append(f"start {name[0]} {name[1][:8]}")
        await self.wait(requests)
        self.events.append(f"end {name[0]} {name[1][:8]}")
        return [self.complete(request) for request in requests]

    async def wait(self, requests: Sequence[GenerateRequest]) -> None:
        if self._delays is not None:
            await asyncio.sleep(self._delays.uniform(0, 0.01))

    def complete(self, request: GenerateRequest) -> Completion:
        rng = np.random.default_rng(request.seed)
        tokens = rng.integers(97, 123, size=rng.integers(1, 9)).astype(np.int32)
        log_probs = -rng.random(len(tokens)).astype(np.float32)
        return Completion(request.request_id, tokens, log_probs, "stop", 5)

    async def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted.extend(request_ids)


class FakeScorer:
    """Criterion i is met if the sum of the letters has bit i; every eleventh text is unscored."""

    def __init__(self, delay_seed: int | None = None, events: list[str] | None = None) -> None:
        self._delays = None if delay_seed is None else random.Random(delay_seed)
        self.events = [] if events is None else events

    def start_judging(self, prompt: Prompt, text: str) -> None:
        """Scores a group at once."""

    def paused_s(self) -> float:
        return 0.0

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        self.events.append(f"score {prompt.id} {len(texts)}")
        if self._delays is not None:
            await asyncio.sleep(self._delays.uniform(0, 0.01))
        return [self.score(text) for text in texts]

    def score(self, text: str) -> Score:
        total = sum(map(ord, text))
        if total % 11 == 0:
            return Unscored("no answer")
        met = [bool(total >> i & 1) for i in range(len(CRITERIA))]
        results = tuple(
            CriterionResult(c.id, Verdict.FOLLOWED if ok else Verdict.NOT_FOLLOWED)
            for c, ok in zip(CRITERIA, met, strict=True)
        )
        return Scored(
            sum(met) / len(met),
            results,
            tuple(c.id for c, ok in zip(CRITERIA, met, strict=True) if ok),
            tuple(c.id for c, ok in zip(CRITERIA, met, strict=True) if not ok),
        )
