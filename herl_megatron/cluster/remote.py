"""The one way to call what lives in other processes: typed, bounded, and by the method itself.

A worker is told the method of the class or protocol that it holds, `TrainerRank.weight_report` or
`RolloutEngine.wake`, and no string, so that arguments and result are checked where the call is
written. A call that engines get anew is written in `RolloutEngine`, in the engine and in
`EngineCalls`; whoever stands between says in one place what every call means there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import numpy as np

from herl_megatron.cluster.health import wait_for_all
from herl_megatron.engine import Bucket, EngineUsage, RolloutEngine
from herl_megatron.types import Completion, GenerateRequest

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


def bound_to(part: T, method: Callable[Concatenate[T, P], R]) -> Callable[P, R]:
    """`method` of its class or protocol as that of `part`, whatever class `part` is of."""
    return cast(Callable[P, R], getattr(part, method.__name__))


class EngineCalls(ABC):
    """A `RolloutEngine` whose calls all go one way, `ask`, to an engine that is somewhere else."""

    @abstractmethod
    async def ask(
        self,
        method: Callable[Concatenate[RolloutEngine, P], Awaitable[R]],
        *given: P.args,
        **named: P.kwargs,
    ) -> R:
        """What that engine answers to `method`; raises `EngineLost` where it is gone or stuck."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """See `RolloutEngine.generate`."""
        return await self.ask(RolloutEngine.generate, list(requests))

    async def score_tokens(
        self, sequences: Sequence[np.ndarray], starts: Sequence[int]
    ) -> list[np.ndarray]:
        """See `RolloutEngine.score_tokens`."""
        return await self.ask(RolloutEngine.score_tokens, list(sequences), list(starts))

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `RolloutEngine.abort`."""
        await self.ask(RolloutEngine.abort, list(request_ids))

    async def start_weight_update(self) -> None:
        """See `RolloutEngine.start_weight_update`."""
        await self.ask(RolloutEngine.start_weight_update)

    async def load_bucket(self, bucket: Bucket) -> None:
        """See `RolloutEngine.load_bucket`."""
        await self.ask(RolloutEngine.load_bucket, bucket)

    async def finish_weight_update(self, weight_version: int) -> None:
        """See `RolloutEngine.finish_weight_update`."""
        await self.ask(RolloutEngine.finish_weight_update, weight_version)

    async def weight_version(self) -> int:
        """See `RolloutEngine.weight_version`."""
        return await self.ask(RolloutEngine.weight_version)

    async def sleep(self, level: int) -> None:
        """See `RolloutEngine.sleep`."""
        await self.ask(RolloutEngine.sleep, level)

    async def wake(self) -> None:
        """See `RolloutEngine.wake`."""
        await self.ask(RolloutEngine.wake)

    async def usage(self) -> EngineUsage:
        """See `RolloutEngine.usage`."""
        return await self.ask(RolloutEngine.usage)

    async def shutdown(self) -> None:
        """See `RolloutEngine.shutdown`."""
        await self.ask(RolloutEngine.shutdown)


class Remotes(Generic[T]):
    """Ray actors of class `T`, such as all ranks of a trainer, called together."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str]) -> None:
        """names: of each actor, for messages."""
        self.actors = list(actors)
        self.names = list(names)
        self.numbers = range(len(self.actors))

    def on_all(
        self, method: Callable[Concatenate[T, P], R], *, doing: str, timeout_s: float
    ) -> Callable[P, Awaitable[list[R]]]:
        """`method` on every actor with the same arguments; results in their order.

        Awaited, it raises `WorkerError` where one died, failed or took longer than `timeout_s`,
        which says who, doing what.
        """
        return self.on(self.numbers, method, doing=doing, timeout_s=timeout_s)

    def on(
        self,
        chosen: Sequence[int],
        method: Callable[Concatenate[T, P], R],
        *,
        doing: str,
        timeout_s: float,
    ) -> Callable[P, Awaitable[list[R]]]:
        """As `on_all` on the actors with these numbers, which results follow."""

        async def call(*given: P.args, **named: P.kwargs) -> list[R]:
            refs = [
                bound_to(self.actors[number], method).remote(*given, **named)  # type: ignore[attr-defined]
                for number in chosen
            ]
            names = [self.names[number] for number in chosen]
            return await wait_for_all(refs, who=names, doing=doing, timeout_s=timeout_s)

        return call

    async def each(
        self,
        method: Callable[..., R],
        arguments: Sequence[tuple[Any, ...]],
        *,
        doing: str,
        timeout_s: float,
    ) -> list[R]:
        """`method` on every actor, each with its own `arguments`; results and errors as of
        `on_all`."""
        refs = [
            getattr(actor, method.__name__).remote(*given)
            for actor, given in zip(self.actors, arguments, strict=True)
        ]
        return await wait_for_all(refs, who=self.names, doing=doing, timeout_s=timeout_s)
