"""What a run does around its steps, whichever loop it is: go on, evaluate, save, export.

A loop of `train`, `sft` or `dpo` is `begin`, its steps with `after_step` behind each, and `end`.
"""

from __future__ import annotations

from dataclasses import dataclass

from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.commands.evaluate import evaluate
from herl_megatron.commands.results import EvalResult
from herl_megatron.config.loop_keys import LoopKeys
from herl_megatron.observability.summary import Evaluated
from herl_megatron.observability.timers import Timers
from herl_megatron.run.checkpointer import Checkpointer, OfStart
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.parts import SyncedParts


@dataclass
class Cycle:
    """One run's.

    engines: what samples held-out prompts; None of a run that has none.
    rests: whether the engines sleep from one evaluation to the next and get the weights for each;
        else the steps bring them every version, as those of `train` do.
    before: held-out numbers before the first step, once there are any.
    """

    loop: LoopKeys
    folder: RunFolder
    timers: Timers
    trainer: TrainerGroup
    checkpoints: Checkpointer
    engines: SyncedParts | None
    rests: bool
    before: Evaluated | None = None

    async def begin(self, of_start: OfStart | None = None) -> int:
        """Stand where the run goes on, with engines that serve its weights; evaluate at the first
        step. Returns how many steps are done.

        of_start: see `Checkpointer.restore`; it may take the trainer's turn.
        """
        await self._rest()
        first, self.before = await self.checkpoints.restore(self.folder.checkpoint, of_start)
        self.folder.take_back()
        await self._wake()
        if self.engines is not None:
            with self.timers("weight_sync", announce="first weight sync"):
                await self.engines.sync_weights(first)
        if not first:
            self.before = await self._evaluate(0)
        await self._rest()
        self.timers.lap()  # what came before the first step is in the summary
        return first

    async def after_step(self, steps_done: int) -> None:
        """Evaluate and save where that is due; after the step's numbers were logged.

        Raises:
            SavedForResume, WorkerError, OSError: as `Checkpointer.save_if_due`.
        """
        if self.loop.evaluates_after(steps_done):
            await self._evaluate_anew(steps_done)
            await self._rest()
        with self.timers("checkpoint"):
            size = self.folder.sync_metrics()
            await self.checkpoints.save_if_due(steps_done, size, self.before)

    async def end(self) -> Evaluated | None:
        """Export, and wait for the last save, before anything else can fail; then the held-out
        numbers of the last weights, None where there are none."""
        if self.loop.export:
            with self.timers("export"):
                await self.trainer.export(self.folder.policy)
        with self.timers("checkpoint"):
            await self.checkpoints.finish()
        if not self.loop.steps:
            return self.before
        return await self._evaluate_anew(self.loop.steps)

    async def _evaluate_anew(self, steps_done: int) -> EvalResult | None:
        """Held-out numbers of the weights after so many steps."""
        await self._wake()
        if self.engines is not None and self.rests:
            with self.timers("weight_sync"):
                await self.engines.sync_weights(steps_done)
        return await self._evaluate(steps_done)

    async def _wake(self) -> None:
        if self.engines is not None and self.rests:
            with self.timers("turns"):
                await self.engines.turns.to_engines()

    async def _rest(self) -> None:
        if self.engines is not None and self.rests:
            with self.timers("turns"):
                await self.engines.turns.to_trainer()

    async def _evaluate(self, step: int) -> EvalResult | None:
        """Held-out numbers under the weights that the engines serve; None without any prompts."""
        parts, folder = self.engines, self.folder
        if parts is None or not parts.inputs.eval:
            return None
        with self.timers("evaluate", announce=f"evaluation on {len(parts.inputs.eval)} prompts"):
            result, groups = await evaluate(parts, parts.inputs.eval)
        folder.log(step, result.metrics() | parts.restarts.metrics())
        folder.log_rollouts(f"eval_{step:06d}", groups)
        return result
