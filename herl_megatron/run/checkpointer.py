"""The driver's side of checkpoints: when one is due, what belongs in it, how a run goes on.

A save runs beside the next steps: the trainer's ranks copy their state while the engines sample,
and write the copy in the background, so that an optimizer step waits for the copy at most. Each
hashes what it writes, and the driver puts the hashes together: it reads nothing of that back. The
folder gets its name when every rank has written its part. One that could not is never published:
that is logged at once and ends the run, with the reason, after the step under way, since every
further step would be lost with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.config.loop_keys import loop_keys
from herl_megatron.config.paths import run_path
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config
from herl_megatron.errors import PausedByBudget, SavedForResume
from herl_megatron.observability.summary import Evaluated, Headline
from herl_megatron.observability.versions import package_versions
from herl_megatron.rubrics.budget import Budget
from herl_megatron.run.checkpoints import (
    Checkpoint,
    DriverState,
    publish_checkpoint,
    start_checkpoint,
)
from herl_megatron.run.stop import StopRequest

logger = logging.getLogger(__name__)
OfStart = Callable[[], Awaitable[None]]

_END_TIMEOUT_S = 30.0  # how long a run that stops waits for a save that is under way


class Resumable(Protocol):
    """What a loop has of its own to go on from, besides trainer and metrics: the rollouts of
    `train` (`rollout.modes.GroupSource`), the reference of `dpo`."""

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs, as plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; ValueError if that does not fit."""
        ...


class Checkpointer:
    """Saves trainer and driver together; at most one save is under way."""

    def __init__(
        self,
        config: Config,
        trainer: TrainerGroup,
        source: Resumable,
        stop: StopRequest | None = None,
        *,
        purpose: Purpose = "train",
        require_alive: Callable[[int], Awaitable[None]] | None = None,
        fingerprints: Mapping[str, str] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """budget: the judge's, which may pause the run; require_alive: is asked, before the weights
        of a version are saved, whether they are a policy's (`rollout.liveness`); raises where they
        are not."""
        self._config = config
        self._loop = loop_keys(config, purpose=purpose)
        self._trainer = trainer
        self._source = source
        self._stop = stop or StopRequest()
        self._require_alive = require_alive
        self._fingerprints = dict(fingerprints or {})
        self._budget = budget
        self._running: asyncio.Task[None] | None = None

    async def restore(
        self, checkpoint: Checkpoint | None, of_start: OfStart | None = None
    ) -> tuple[int, Evaluated | None]:
        """Bring trainer and rollouts to the checkpoint.

        of_start: is awaited while the trainer has the weights that the run began with, when the
            source stands at the checkpoint already.

        Returns the steps done and the evaluation before the first, None where the evaluation has
        changed since; 0 and None without checkpoint.

        Raises:
            ValueError: the prompts are not those of the checkpoint.
            WorkerError: a rank could not read its part.
        """
        if checkpoint is not None:
            self._source.load_state_dict(dict(checkpoint.driver.prompts))
        if of_start is not None:
            await of_start()
        if checkpoint is None:
            return 0, None
        driver = checkpoint.driver
        await self._trainer.load_checkpoint(checkpoint.folder / "trainer", version=driver.step)
        logger.info("resumed from %s", checkpoint.folder)
        if checkpoint.other_evaluation and driver.before:
            logger.warning(
                "the evaluation is another than it was (%s): what was measured before the first"
                " step does not compare and is left out",
                ", ".join(checkpoint.other_evaluation),
            )
            return driver.step, None
        return driver.step, Headline(**driver.before) if driver.before else None

    async def save_if_due(
        self, steps_done: int, metrics_bytes: int, before: Evaluated | None
    ) -> None:
        """Start a save after every `checkpoint.every` steps, after the last, to stop and to pause.

        Raises:
            WorkerError, OSError: an earlier save failed.
            SavedForResume: the run was asked to stop and is saved.
            PausedByBudget: the same, because of the judge's budget.
            DeadPolicyError: what would be saved is no policy; earlier checkpoints stay.
        """
        if self._running is not None and self._running.done():
            await self.finish()
        every = self._config.checkpoint.every
        at_end = steps_done == self._loop.steps
        due = every and (not steps_done % every or at_end)
        spent = self._budget.pause() if self._budget is not None else ""
        if at_end and not self._loop.evaluates:
            spent = ""  # nothing is left to be judged
        if not due and not self._stop.made and not spent:
            return
        if self._require_alive is not None:
            await self._require_alive(steps_done)
        await self.finish()
        headline = None
        if before is not None:
            headline = {"reward": before.reward, "all_satisfied": before.all_satisfied}
        driver = DriverState(
            step=steps_done,
            metrics_bytes=metrics_bytes,
            prompts=self._source.state_dict(),
            before=headline,
            config=self._config.model_dump(mode="json"),
            fingerprints=self._fingerprints,
            versions=package_versions(),
        )
        self._running = asyncio.create_task(self._save(driver))
        await asyncio.sleep(0)  # the ranks get the save before any further call of this loop
        if self._stop.made:
            await self.finish()
            raise SavedForResume(f"asked to stop: {steps_done} steps are done and saved")
        if spent:
            await self.finish()
            raise PausedByBudget(f"{steps_done} steps are done and saved; {spent}")

    async def finish(self) -> None:
        """Wait for the save under way; raises what it raised."""
        if self._running is not None:
            running, self._running = self._running, None
            await running

    async def close(self, *, within_s: float = _END_TIMEOUT_S) -> None:
        """At the end of any run: a save under way may still finish, within a limit."""
        if self._running is not None:
            try:
                await asyncio.wait_for(self.finish(), within_s)
            except (WorkerError, OSError, TimeoutError) as error:
                logger.warning("the last checkpoint was not finished: %s", error)

    async def _save(self, driver: DriverState) -> None:
        try:
            await self._written(driver)
        except (WorkerError, OSError) as error:
            logger.error("the checkpoint of step %d failed: %s", driver.step, error)
            raise

    async def _written(self, driver: DriverState) -> None:
        staging = start_checkpoint(run_path(self._config).resolve(), driver.step)
        files = await self._trainer.save_checkpoint(staging / "trainer")
        folder = await asyncio.to_thread(
            publish_checkpoint,
            staging,
            driver,
            keep=self._config.checkpoint.keep,
            written={f"trainer/{name}": facts for name, facts in files.items()},
        )
        logger.info("checkpoint %s", folder)
