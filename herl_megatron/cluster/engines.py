"""The driver's view of the rollout engines: one `RolloutEngine` per Ray actor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from herl_megatron.cluster.health import WorkerError, kill, wait_for, wait_for_all
from herl_megatron.cluster.placement import actor_options
from herl_megatron.cluster.workers import EngineWorker
from herl_megatron.config.schema import Config
from herl_megatron.rollout.engine import Bucket, EngineConfig, engine_environment
from herl_megatron.types import Completion, GenerateRequest

_START_TIMEOUT_S = 300.0
_SHUTDOWN_TIMEOUT_S = 10.0


class RemoteEngine:
    """A `RolloutEngine` that forwards to an actor; every wait is bounded and names the engine."""

    def __init__(self, actor: Any, *, index: int, config: Config) -> None:
        self.actor = actor
        self.name = f"rollout engine {index}"
        self._generate_timeout_s = config.rollout.timeout_s
        self._sync_timeout_s = config.weight_sync.timeout_s

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """See `RolloutEngine.generate`."""
        return await self._call(
            self.actor.generate.remote(list(requests)), "generate", self._generate_timeout_s
        )

    async def score_tokens(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[np.ndarray]:
        """See `RolloutEngine.score_tokens`."""
        return await self._call(
            self.actor.score_tokens.remote(list(sequences), list(starts)),
            "score tokens",
            self._generate_timeout_s,
        )

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
        return await self._sync(self.actor.weight_version.remote(), "weight version")

    async def sleep(self, level: int) -> None:
        """See `RolloutEngine.sleep`."""
        await self._sync(self.actor.sleep.remote(level), "sleep")

    async def wake(self) -> None:
        """See `RolloutEngine.wake`."""
        await self._sync(self.actor.wake.remote(), "wake")

    async def shutdown(self) -> None:
        """Stop the engine and end its process."""
        try:
            await self._call(self.actor.shutdown.remote(), "shut down", _SHUTDOWN_TIMEOUT_S)
        except WorkerError:
            pass  # already gone or stuck: the kill below ends it either way
        kill([self.actor])

    async def _sync(self, ref: Any, doing: str) -> Any:
        return await self._call(ref, doing, self._sync_timeout_s)

    async def _call(self, ref: Any, doing: str, timeout_s: float) -> Any:
        return await wait_for(ref, who=self.name, doing=doing, timeout_s=timeout_s)


async def start_engines(
    config: Config, engine: EngineConfig, *, replicas: int
) -> list[RemoteEngine]:
    """Start all replicas at once; returns when each can generate.

    Raises:
        WorkerError: an engine did not start; the others are ended first.
    """
    env = engine_environment(device=engine.device, threads=config.cluster.threads_per_rank)
    options = actor_options(device=engine.device, env=env)
    remote = ray.remote(EngineWorker)
    engines = [
        RemoteEngine(remote.options(**options).remote(), index=index, config=config)
        for index in range(replicas)
    ]
    try:
        await wait_for_all(
            [item.actor.start.remote(engine) for item in engines],
            who=[item.name for item in engines],
            doing="start vLLM",
            timeout_s=_START_TIMEOUT_S,
        )
    except BaseException:
        kill([item.actor for item in engines])
        raise
    return engines


async def stop_engines(engines: Sequence[RemoteEngine]) -> None:
    """End every engine's process."""
    await asyncio.gather(*(engine.shutdown() for engine in engines))
