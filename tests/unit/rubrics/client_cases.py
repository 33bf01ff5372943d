"""A judge's client that asks the scripted server, and what it must answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.types import Aggregation, Criterion, CriterionResult, Message, Prompt, Rubric
from herl_megatron.types import Verdict as V
from tests.fake_judge import FakeJudge

T = TypeVar("T")


WORDS = ("river", "stone", "bread")


def contains(word: str) -> Criterion:
    return Criterion(word, "judge", description=f'The response contains the word "{word}".')


def make_prompt(
    criteria: Sequence[Criterion] = tuple(map(contains, WORDS)),
    aggregation: Aggregation = "explicit",
) -> Prompt:
    return Prompt("p", (Message("user", "Write."),), Rubric(tuple(criteria), aggregation))


def settings(server: FakeJudge, **changes: Any) -> JudgeConfig:
    """10 ms between attempts, time for slow machines, no cache, never pausing."""
    values: dict[str, Any] = {
        "base_url": server.url, "model": "m", "retry_wait_s": 0.01, "timeout_s": 20.0,
        "deadline_s": 60.0, "cache": "", "failure_window": 1000, "retries": 3,
    }  # fmt: skip
    return JudgeConfig(**values | changes)


def use(config: JudgeConfig, work: Callable[[JudgeClient], Awaitable[T]]) -> T:
    """Run `work` with a client that is closed at the end, and nothing left under way."""

    async def run() -> T:
        client = JudgeClient(config)
        try:
            return await work(client)
        finally:
            await client.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(run())


def judge_all(
    config: JudgeConfig, texts: Sequence[str], prompt: Prompt | None = None
) -> tuple[list[list[CriterionResult]], dict[str, float]]:
    """Results per text, all asked for at the same time, and the client's stats."""
    asked = prompt or make_prompt()

    async def work(client: JudgeClient) -> tuple[list[list[CriterionResult]], dict[str, float]]:
        calls = (client.judge(asked, text, asked.rubric.criteria) for text in texts)
        return list(await asyncio.gather(*calls)), client.stats()

    return use(config, work)


def verdicts(results: Sequence[CriterionResult]) -> list[V]:
    assert all(not result.for_every_response for result in results)
    return [result.verdict for result in results]


def expected(text: str) -> list[V]:
    return [V.FOLLOWED if word in text.split() else V.NOT_FOLLOWED for word in WORDS]


TEXTS = [
    f"{a} and {b} number {i}"
    for i, (a, b) in enumerate(zip(WORDS * 7, WORDS[1:] * 10, strict=False))
]
