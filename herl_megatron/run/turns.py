"""Trainer and engines take turns on devices that they share.

A step is: sample, `to_trainer`, learn, `to_engines`, sync the weights. On the CPU the same calls
are made in the same order and free nothing; on a GPU this order was not run yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, Protocol

from herl_megatron.config.schema import RolloutConfig


class Sleeper(Protocol):
    """What is asked of an engine."""

    async def sleep(self, level: int) -> None:
        """See `RolloutEngine.sleep`."""
        ...

    async def wake(self) -> None:
        """See `RolloutEngine.wake`."""
        ...


class MemoryHolder(Protocol):
    """What is asked of the trainer."""

    async def release_memory(self) -> None:
        """Give device memory that is kept for later use, but holds nothing now, back."""
        ...


class Turns:
    """Whose turn it is: the engines' first.

    Weights, gradients and optimizer state of the trainer stay on the device all the time.
    """

    def __init__(
        self, trainer: MemoryHolder, engines: Sequence[Sleeper], config: RolloutConfig
    ) -> None:
        self._trainer = trainer
        self._engines = engines
        # One step off, the engines sample while the trainer learns.
        self._level: Literal[0, 1, 2] = 0 if config.mode == "one_step_off" else config.sleep

    @property
    def drops_weights(self) -> bool:
        """Whether woken engines cannot sample before the next weight sync."""
        return self._level == 2

    async def to_trainer(self) -> None:
        """Put every engine to sleep; none may have requests."""
        if self._level:
            await asyncio.gather(*(engine.sleep(self._level) for engine in self._engines))

    async def to_engines(self) -> None:
        """Wake every engine, after the trainer has given up the memory that it has no use for."""
        if self._level:
            await self._trainer.release_memory()
            await asyncio.gather(*(engine.wake() for engine in self._engines))
