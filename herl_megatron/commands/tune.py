"""The loop that fits rows: of `herl sft` and `herl dpo`, which say what a step is.

It begins, saves, resumes and ends as that of `herl train` (`commands.cycle`). Held-out prompts are
sampled where `eval_every` asks; engines are started for that alone and sleep while it learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

from rich import get_console

from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.commands.cycle import Cycle
from herl_megatron.commands.finished import finished_summary, headlines, say_finished
from herl_megatron.commands.results import TuneResult
from herl_megatron.commands.tables import print_policy, tuning_tables
from herl_megatron.config.loop_keys import LoopKeys
from herl_megatron.config.schema import Config
from herl_megatron.observability.summary import tuning_summary
from herl_megatron.observability.timers import Timers
from herl_megatron.run.checkpointer import Resumable
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.rescue import rescued
from herl_megatron.run.tuning_inputs import TuningInputs
from herl_megatron.run.tuning_parts import TuningParts, open_tuning_parts


class TuningTask(Resumable, Protocol):
    """What is learnt, step by step."""

    async def of_start(self, trainer: TrainerGroup, folder: RunFolder) -> None:
        """What is to be known of the weights that the run began with, which `trainer` has."""
        ...

    async def step(self, trainer: TrainerGroup, step: int) -> dict[str, float]:
        """One optimizer step, of the rows that are step `step`'s whatever was asked before; returns
        its metrics."""
        ...


async def tune(
    config: Config, inputs: TuningInputs, task: TuningTask, *, loop: LoopKeys
) -> TuneResult:
    """Run `task` to its end, or on from where an earlier start was stopped, and export the policy.

    Raises:
        ValueError: model or layout, or what a resume would go on from is another run's.
        SavedForResume: the run was asked to stop and is saved.
        WorkerError: a trainer rank died or took too long; what was done, if possible the policy,
            is on disk.
    """
    timers = Timers()
    with RunFolder.create(config, purpose=loop.purpose, fingerprints=inputs.fingerprints) as folder:
        summary = finished_summary(folder.path, folder.checkpoint, loop)
        if summary is None:
            async with AsyncExitStack() as stack:
                with timers("start"):
                    opening = open_tuning_parts(config, inputs, task, loop=loop)
                    parts = await stack.enter_async_context(opening)
                folder.saw_nodes(parts.nodes)
                async with rescued(parts, folder):
                    summary = await _loop(parts, folder, timers, task, loop)
        else:
            say_finished(summary)
    assert summary is not None, "a loop that ends early raises"
    return _shown(folder, summary)


async def _loop(
    parts: TuningParts, folder: RunFolder, timers: Timers, task: TuningTask, loop: LoopKeys
) -> dict[str, Any]:
    trainer, name = parts.trainer, loop.purpose
    cycle = Cycle(
        loop, folder, timers, trainer, parts.checkpoints, engines=parts.engines, rests=True
    )
    first = await cycle.begin(lambda: task.of_start(trainer, folder))
    for step in folder.progress(range(first, loop.steps), name.upper()):
        with timers("train"):
            learned = await task.step(trainer, step)
        folder.log(step, learned)
        await cycle.after_step(step + 1)
    after = await cycle.end()
    summary = tuning_summary(
        folder.history, name, before=cycle.before, after=after, seconds=timers.totals()
    )
    folder.write_json("summary.json", summary)
    return summary


def _shown(folder: RunFolder, summary: Mapping[str, Any]) -> TuneResult:
    """Print the run's tables; the bar is done with."""
    tables = tuning_tables(summary)
    print_policy(tables, folder=folder.path, policy=folder.policy, console=get_console())
    return TuneResult(
        folder.path, folder.policy, summary["first"], summary["last"], *headlines(summary)
    )
