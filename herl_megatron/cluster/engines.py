"""The driver's view of the rollout engines: each a watched Ray actor, started anew when lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from herl_megatron.cluster.health import WorkerError, kill, wait_for
from herl_megatron.cluster.placement import Slot, actor_options
from herl_megatron.cluster.restart import RestartingEngine, Restarts
from herl_megatron.cluster.workers import HEALTH, EngineWorker
from herl_megatron.config.schema import RolloutConfig
from herl_megatron.engine import (
    Bucket,
    EngineConfig,
    EngineLost,
    EngineUsage,
    engine_environment,
)
from herl_megatron.observability.phases import counted, phases
from herl_megatron.types import Completion, GenerateRequest

_START_TIMEOUT_S = 300.0  # at least, and as long as `rollout.timeout_s` otherwise
_SHUTDOWN_TIMEOUT_S = 10.0
_LONGEST_WATCH_PERIOD_S = 10.0


class RemoteEngine:
    """An `EngineProcess` that forwards to an actor; every wait is bounded and names the engine.

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

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """See `RolloutEngine.generate`."""
        completions: list[Completion] = await self._call(
            self.actor.generate.remote(list(requests)), "generate", self._generate_timeout_s
        )
        return completions

    async def score_tokens(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[np.ndarray]:
        """See `RolloutEngine.score_tokens`."""
        log_probs: list[np.ndarray] = await self._call(
            self.actor.score_tokens.remote(list(sequences), list(starts)),
            "score tokens",
            self._generate_timeout_s,
        )
        return log_probs

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `RolloutEngine.abort`."""
        await self._sync(self.actor.abort.remote(list(request_ids)), "abort")

    async def start_weight_update(self) -> None:
        """See `RolloutEngine.start_weight_update`."""
        await self._sync(self.actor.start_weight_update.remote(), "start weight update")

    async def load_bucket(self, bucket: Bucket) -> None:
        """See `RolloutEngine.load_bucket`."""
        await self._sync(self.actor.load_bucket.remote(bucket), "load a weight bucket")

    async def finish_weight_update(self, weight_version: int) -> None:
        """See `RolloutEngine.finish_weight_update`."""
        await self._sync(
            self.actor.finish_weight_update.remote(weight_version), "finish weight update"
        )

    async def weight_version(self) -> int:
        """See `RolloutEngine.weight_version`."""
        version: int = await self._sync(self.actor.weight_version.remote(), "weight version")
        return version

    async def sleep(self, level: int) -> None:
        """See `RolloutEngine.sleep`."""
        await self._sync(self.actor.sleep.remote(level), "sleep")

    async def wake(self) -> None:
        """See `RolloutEngine.wake`."""
        await self._sync(self.actor.wake.remote(), "wake")

    async def usage(self) -> EngineUsage:
        """See `RolloutEngine.usage`."""
        found: EngineUsage = await self._sync(self.actor.usage.remote(), "usage")
        return found

    async def shutdown(self) -> None:
        """Stop the engine and end its process."""
        with contextlib.suppress(EngineLost):  # gone or stuck: the kill ends it either way
            await self._bounded(self.actor.shutdown.remote(), "shut down", _SHUTDOWN_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """See `EngineProcess.kill`."""
        kill([self.actor])

    async def _sync(self, ref: Any, doing: str) -> Any:
        return await self._call(ref, doing, self._sync_timeout_s)

    async def _call(self, ref: Any, doing: str, timeout_s: float) -> Any:
        with self._watched():
            return await self._bounded(ref, doing, timeout_s)

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
