"""An engine that hangs is told from one that works for long, with an actor of plain coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from ray.exceptions import RayActorError

from herl_megatron.cluster import engines
from herl_megatron.cluster.engines import RemoteEngine
from herl_megatron.config.schema import RolloutConfig
from herl_megatron.engine import Bucket, EngineLost


class Method:
    """`actor.method.remote(...)` as an awaitable, which Ray's references are."""

    def __init__(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.remote = function


class Actor:
    """Answers after `work_s`, unless it is killed; says that it has stalled for `stalled_s`."""

    def __init__(self, work_s: float, stalled_s: float | None) -> None:
        self.killed = asyncio.Event()
        self.asked = 0
        self._work_s, self._stalled_s = work_s, stalled_s
        self.ask = Method(self._ask)
        self.stalled_s = Method(self._stalled)

    async def _ask(self, method: Any, *given: Any) -> list[str]:
        killed = asyncio.create_task(self.killed.wait())
        done, _ = await asyncio.wait({killed}, timeout=self._work_s)
        killed.cancel()
        if done:
            raise RayActorError()
        return ["answer"]

    async def _stalled(self) -> float:
        self.asked += 1
        if self._stalled_s is None:  # a stopped process
            await asyncio.sleep(3600)
        return self._stalled_s or 0.0


@pytest.fixture(autouse=True)
def kill(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(actors: Sequence[Actor]) -> None:
        for actor in actors:
            actor.killed.set()

    monkeypatch.setattr(engines, "kill", end)


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(1800.0, 1800.0), (60.0, 300.0)])
def test_a_slow_start_may_take_as_long_as_a_group(timeout_s: float, limit_s: float) -> None:
    process = engine(Actor(work_s=0, stalled_s=0), timeout_s=timeout_s)
    assert process.start_limit_s == limit_s


def engine(actor: Actor, **rollout: float) -> RemoteEngine:
    section = RolloutConfig.model_validate({"stall_timeout_s": 0.2, **rollout})
    return RemoteEngine(actor, index=3, rollout=section, sync_timeout_s=60)


@pytest.mark.parametrize("stalled_s", [None, 0.5], ids=["no answer", "no step"])
def test_a_hung_engine_is_killed_and_every_open_call_says_why(stalled_s: float | None) -> None:
    async def scenario() -> None:
        actor = Actor(work_s=60, stalled_s=stalled_s)
        process = engine(actor)
        calls = [process.generate([]), process.generate([]), process.load_bucket(Bucket("", 0, ()))]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        for error, doing in zip(errors, ("generate", "generate", "load bucket"), strict=True):
            assert isinstance(error, EngineLost), error
            assert "rollout engine 3 hangs: no step finished for 0.2 s" in str(error)
            assert doing in str(error)

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_an_engine_that_works_for_long_is_left_alone_and_nobody_asks_an_idle_one() -> None:
    async def scenario() -> None:
        actor = Actor(work_s=0.8, stalled_s=0.1)
        process = engine(actor)
        answers: Any = await asyncio.gather(process.generate([]), process.generate([]))
        assert list(answers) == [["answer"]] * 2
        asked = actor.asked
        assert 5 <= asked <= 16 and not actor.killed.is_set()  # every 0.05 s, one watcher
        await asyncio.sleep(0.2)
        assert actor.asked == asked

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_call_over_its_limit_and_a_death_are_losses() -> None:
    async def scenario() -> None:
        late = engine(Actor(work_s=60, stalled_s=0.0), timeout_s=0.1)
        with pytest.raises(
            EngineLost, match="rollout engine 3 did not finish 'generate' within 0.1"
        ):
            await late.generate([])
        actor = Actor(work_s=60, stalled_s=0.0)
        actor.killed.set()
        with pytest.raises(EngineLost, match="rollout engine 3 died during 'generate'"):
            await engine(actor).generate([])

    asyncio.run(asyncio.wait_for(scenario(), 10))
