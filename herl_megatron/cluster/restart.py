"""An engine that outlives its processes: one that dies or hangs is started anew within the run.

A lost call is made again on the next process. Requests carry their seeds, so that it gives the same
tokens; and nothing is served before the process has the trainer's current weights (in
`rollout.mode: one_step_off` those of the training step that is under way, once it is done). All
calls that lose the same process share one restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.remote import EngineCalls, bound_to
from herl_megatron.engine import (
    EngineLost,
    EngineUsage,
    RolloutEngine,
    aborted,
)
from herl_megatron.types import Completion, GenerateRequest

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
_NO_VERSION = -1  # of weights that drew no token
_LASTING = tuple(
    call.__name__ for call in (RolloutEngine.score_tokens, RolloutEngine.sleep, RolloutEngine.wake)
)
"""Calls that are made again after a loss as they were; `generate` takes care of its own."""


class EngineProcess(RolloutEngine, Protocol):
    """One process of an engine; its calls raise `EngineLost` when it is gone or stuck."""

    def kill(self) -> None:
        """End it at once, also when it hangs; one that is already gone is fine."""
        ...


class Restarts:
    """What all engines of a run share: how many restarts there may be, and were.

    Attributes:
        refresh: brings a new process to the trainer's current weights; None where engines read
            their weights from a folder.
    """

    def __init__(self, limit: int) -> None:
        self.refresh: Callable[[RolloutEngine], Awaitable[None]] | None = None
        self._limit = limit
        self._count = 0
        self._reported = 0

    def admit(self, lost: EngineLost) -> None:
        """Count one restart.

        Raises:
            WorkerError: there were `rollout.max_engine_restarts` already; says how the engine was
                lost.
        """
        if self._count >= self._limit:
            spent = f"after {self._count} restarts in this run " if self._count else ""
            raise WorkerError(f"{lost} ({spent}rollout.max_engine_restarts is {self._limit})")
        self._count += 1
        logger.warning("%s; restart %d of at most %d", lost, self._count, self._limit)

    def metrics(self) -> dict[str, float]:
        """`rollout/engine_restarts` since the last call."""
        new, self._reported = self._count - self._reported, self._count
        return {"rollout/engine_restarts": float(new)}


class RestartingEngine(EngineCalls):
    """A `RolloutEngine` over one process after another.

    `generate`, `score_tokens`, `sleep` and `wake` last through a loss. The steps of a weight update
    raise `EngineLost`: the update goes on without this engine, and `recover` brings it up
    afterwards.

    Attributes:
        epoch: how many processes came before the one that serves now.
    """

    def __init__(
        self,
        process: EngineProcess,
        start: Callable[[], Awaitable[EngineProcess]],
        restarts: Restarts,
    ) -> None:
        self.epoch = 0
        self._process = process
        self._start = start
        self._restarts = restarts
        self._recovery: asyncio.Task[None] | None = None
        self._open: set[str] = set()
        self._aborted: set[str] = set()  # of the open requests: not to be sent again

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """See `RolloutEngine.generate`. Raises `WorkerError` past the limit of restarts.

        What an aborted request had drawn on a process that was lost is lost too: it comes back
        without tokens.
        """
        ids = {request.request_id for request in requests}
        self._open |= ids
        try:
            return await self._generate(requests)
        finally:
            self._open -= ids
            self._aborted -= ids

    async def ask(
        self,
        method: Callable[Concatenate[RolloutEngine, P], Awaitable[R]],
        *given: P.args,
        **named: P.kwargs,
    ) -> R:
        """See `EngineCalls.ask`: made again on the next process, but for a weight update's steps.

        Raises:
            WorkerError: past the limit of restarts.
        """
        while True:
            epoch = self.epoch
            try:
                return await bound_to(cast(RolloutEngine, self._process), method)(*given, **named)
            except EngineLost as lost:
                if method.__name__ not in _LASTING:
                    raise
                await self.recover(epoch, lost)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `RolloutEngine.abort`."""
        self._aborted |= self._open.intersection(request_ids)
        try:
            await self._process.abort(request_ids)
        except EngineLost as lost:
            logger.info("nothing to abort: %s", lost)  # its requests are gone with it

    async def usage(self) -> EngineUsage:
        """See `RolloutEngine.usage`; nothing of one that is lost, which its next call finds out."""
        try:
            return await self._process.usage()
        except EngineLost:
            return EngineUsage()

    async def shutdown(self) -> None:
        """Stop the engine and end its process; a restart under way is given up."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await self._process.shutdown()

    async def recover(self, epoch: int, lost: EngineLost) -> None:
        """Return when a process after that of `epoch` serves the current weights.

        Raises:
            WorkerError: the limit of restarts is reached, or the trainer failed meanwhile.
        """
        if epoch != self.epoch:
            return
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._restart(lost))
        await asyncio.shield(self._recovery)  # the others that wait for it may go on waiting

    async def _generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        while True:
            epoch = self.epoch
            wanted = [r for r in requests if r.request_id not in self._aborted]
            try:
                answers = await self._process.generate(wanted) if wanted else []
            except EngineLost as lost:
                # Nobody waits for more of aborted ones; the next call will start the engine anew.
                if any(request.request_id not in self._aborted for request in requests):
                    await self.recover(epoch, lost)
                continue
            drawn = {answer.request_id: answer for answer in answers}
            return [
                drawn.get(r.request_id) or aborted(r.request_id, weight_version=_NO_VERSION)
                for r in requests
            ]

    async def _restart(self, lost: EngineLost) -> None:
        begin = time.monotonic()
        self._process.kill()
        while True:
            self._restarts.admit(lost)
            try:
                process = await self._start()
            except EngineLost as again:
                lost = again
                continue
            try:
                if self._restarts.refresh is not None:
                    await self._restarts.refresh(process)
            except EngineLost as again:
                process.kill()
                lost = again
            except BaseException:
                process.kill()
                raise
            else:
                self._process, self.epoch = process, self.epoch + 1
                logger.info("the engine is back after %.1f s", time.monotonic() - begin)
                return
