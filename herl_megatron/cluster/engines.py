"""The driver's view of the rollout engines: each a watched Ray actor, started anew when lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import RayError

from herl_megatron.cluster.health import WorkerError, kill, wait_for
from herl_megatron.cluster.placement import Slot, actor_options
from herl_megatron.cluster.remote import EngineCalls
from herl_megatron.cluster.restart import RestartingEngine, Restarts
from herl_megatron.cluster.workers import HEALTH, EngineWorker
from herl_megatron.config.schema import RolloutConfig
from herl_megatron.engine import EngineConfig, EngineLost, RolloutEngine
from herl_megatron.observability.phases import counted, phases
from herl_megatron.rollout.vllm.engine_environment import engine_environment

_START_TIMEOUT_S = 300.0  # at least, and as long as `rollout.timeout_s` otherwise
_SHUTDOWN_TIMEOUT_S = 10.0
_LONGEST_WATCH_PERIOD_S = 10.0
_SAMPLING = (RolloutEngine.generate.__name__, RolloutEngine.score_tokens.__name__)
"""Calls that may take as long as a group; all others have the limit of a weight sync."""
P = ParamSpec("P")
R = TypeVar("R")


class RemoteEngine(EngineCalls):
    """An `EngineProcess` over an actor; every wait is bounded and names the engine.

    While calls are open the actor is asked whether its engine gets on; one that does not for
    `rollout.stall_timeout_s` is killed, which fails those calls.

    Attributes:
        start_limit_s: longest wait for its start.
    """

    def __init__(
        self,
        actor: Any,
        *,
        index: int,
        rollout: RolloutConfig,
        sync_timeout_s: float,
        node_ip: str = "",
    ) -> None:
        """sync_timeout_s: `weight_sync.timeout_s`; `node_ip` where there are several nodes to tell
        apart."""
        self.actor = actor
        self.name = f"rollout engine {index}" + (f" on {node_ip}" if node_ip else "")
        self._generate_timeout_s = rollout.timeout_s
        # A large model is read and compiled for minutes; who waits longer raises the same limit.
        self.start_limit_s = max(_START_TIMEOUT_S, rollout.timeout_s)
        self._sync_timeout_s = sync_timeout_s
        self._stall_timeout_s = rollout.stall_timeout_s
        self._open_calls = 0
        self._watcher: asyncio.Task[None] | None = None
        self._hang = ""

    async def start(self, engine: EngineConfig) -> None:
        """Build the engine; returns when it can generate.

        Raises:
            EngineLost: it did not start; its process is ended.
            ValueError: vLLM refuses the model or the limits.
        """
        try:
            await self._bounded(self.actor.start.remote(engine), "start vLLM", self.start_limit_s)
        except BaseException:
            self.kill()
            raise

    async def ask(
        self,
        method: Callable[Concatenate[RolloutEngine, P], Awaitable[R]],
        *given: P.args,
        **named: P.kwargs,
    ) -> R:
        """See `EngineCalls.ask`."""
        assert not named, f"arguments of {method.__name__} go by place"
        name = method.__name__
        limit_s = self._generate_timeout_s if name in _SAMPLING else self._sync_timeout_s
        with self._watched():
            ref = self.actor.ask.remote(method, *given)
            answer: R = await self._bounded(ref, name.replace("_", " "), limit_s)
            return answer

    async def shutdown(self) -> None:
        """Stop the engine and end its process."""
        with contextlib.suppress(EngineLost):  # gone or stuck: the kill ends it either way
            ref = self.actor.ask.remote(RolloutEngine.shutdown)
            await self._bounded(ref, "shut down", _SHUTDOWN_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """See `EngineProcess.kill`."""
        kill([self.actor])

    async def _bounded(self, ref: Any, doing: str, timeout_s: float) -> Any:
        try:
            return await wait_for(ref, who=self.name, doing=doing, timeout_s=timeout_s)
        except WorkerError as error:
            hang = f"{self.name} {self._hang} during {doing!r}; it was killed"
            raise EngineLost(hang if self._hang else str(error)) from error

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """One watcher while any call is open."""
        self._open_calls += 1
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._open_calls -= 1
            if not self._open_calls:
                self._watcher.cancel()
                self._watcher = None

    async def _watch(self) -> None:
        limit_s = self._stall_timeout_s
        stalled_s = 0.0
        while stalled_s < limit_s:
            await asyncio.sleep(min(limit_s / 4, _LONGEST_WATCH_PERIOD_S))
            try:
                async with asyncio.timeout(limit_s):
                    stalled_s = await self.actor.stalled_s.remote()
            except TimeoutError:
                stalled_s = limit_s
            except RayError:
                return  # it is gone, and the open calls hear of it themselves
        self._hang = f"hangs: no step finished for {limit_s:g} s (rollout.stall_timeout_s)"
        self.kill()


async def start_engines(
    engine: EngineConfig,
    *,
    rollout: RolloutConfig,
    sync_timeout_s: float,
    threads: int,
    slots: Sequence[Slot],
    restarts: Restarts | None = None,
    first_reads_folder: bool = False,
) -> list[RestartingEngine]:
    """Start one engine per slot, all at once; returns when each can generate.

    threads: of each process (`cluster.threads_per_rank`); sync_timeout_s: `weight_sync.timeout_s`.
    restarts: of the run; none given, a lost engine ends it.
    first_reads_folder: the first engine reads the weights of the model's folder whatever
        `engine.random_weights` says, which still holds where it is started anew.

    Raises:
        EngineLost, ValueError: an engine did not start; the others are ended first.
    """
    shared = restarts or Restarts(limit=0)
    several_nodes = len({slot.node_id for slot in slots}) > 1
    starts = [
        functools.partial(
            _start,
            rollout=rollout,
            sync_timeout_s=sync_timeout_s,
            threads=threads,
            slot=slot,
            index=index,
            node_ip=slot.node_ip if several_nodes else "",
        )
        for index, slot in enumerate(slots)
    ]
    begun = []
    for index, start in enumerate(starts):
        reads = first_reads_folder and index == 0
        begun.append(
            asyncio.create_task(start(replace(engine, random_weights=False) if reads else engine))
        )
    anew = [functools.partial(start, engine) for start in starts]
    try:
        with phases(counted("starting", len(slots), "rollout engine"), announce=True):
            processes = await asyncio.gather(*begun)
    except BaseException:
        for task in begun:
            task.cancel()
        for process in await asyncio.gather(*begun, return_exceptions=True):
            if isinstance(process, RemoteEngine):
                process.kill()
        raise
    return [
        RestartingEngine(process, start, shared)
        for process, start in zip(processes, anew, strict=True)
    ]


async def stop_engines(engines: Sequence[RestartingEngine]) -> None:
    """End every engine's process."""
    await asyncio.gather(*(engine.shutdown() for engine in engines))


async def _start(
    engine: EngineConfig,
    *,
    rollout: RolloutConfig,
    sync_timeout_s: float,
    threads: int,
    slot: Slot,
    index: int,
    node_ip: str,
) -> RemoteEngine:
    env = engine_environment(device=engine.device, threads=threads)
    options = actor_options(slot, device=engine.device, env=env)
    remote = ray.remote(concurrency_groups={HEALTH: 1})(EngineWorker)
    actor = remote.options(**options).remote()
    process = RemoteEngine(
        actor, index=index, rollout=rollout, sync_timeout_s=sync_timeout_s, node_ip=node_ip
    )
    await process.start(engine)
    return process
