"""Build the parts of a run that fits rows: the trainer, and engines where held-out prompts are
sampled meanwhile; all at once, and end them all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from herl_megatron.cluster.placement import demand
from herl_megatron.cluster.ray_watch import RayWatch
from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.config.loop_keys import LoopKeys
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config
from herl_megatron.run.checkpointer import Checkpointer, Resumable
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.ground import Ground, open_ground, start_trainer_alone
from herl_megatron.run.parts import SyncedParts, open_synced
from herl_megatron.run.tuning_inputs import TuningInputs


@dataclass(frozen=True)
class TuningParts:
    """The running parts of `herl sft` or `herl dpo`.

    engines: what samples held-out prompts, None where none are.
    """

    trainer: TrainerGroup
    checkpoints: Checkpointer
    engines: SyncedParts | None
    ray: RayWatch
    nodes: Sequence[Mapping[str, Any]]
    """`Nodes.records`; none of a run on one."""


@asynccontextmanager
async def open_tuning_parts(
    config: Config, inputs: TuningInputs, source: Resumable, *, loop: LoopKeys
) -> AsyncIterator[TuningParts]:
    """Start Ray, the trainer and, for evaluations, engines and scoring pool; end all of them after.

    source: what a checkpoint keeps beside trainer and metrics.

    Raises:
        WorkerError, ValueError: a part did not start, or the judge does not answer; whatever had
            started is ended first.
        ParityError: trainer and engine take the same folder for different models.
    """
    async with AsyncExitStack() as stack:
        held_out = inputs.evaluation
        wanted = demand(config.megatron, config.rollout if held_out else None)
        prompts = held_out.eval if held_out else ()
        ground = await open_ground(config, prompts, stack, wanted, can_stop=True)
        trainer, engines = await _start(config, inputs, stack, ground, loop)
        checkpoints = Checkpointer(
            config,
            trainer,
            source,
            ground.stop,
            purpose=loop.purpose,
            fingerprints=inputs.fingerprints,
            budget=ground.judge.budget if ground.judge else None,
        )
        stack.push_async_callback(checkpoints.close)
        yield TuningParts(trainer, checkpoints, engines, ground.ray, ground.nodes.records)


async def _start(
    config: Config, inputs: TuningInputs, stack: AsyncExitStack, ground: Ground, loop: LoopKeys
) -> tuple[TrainerGroup, SyncedParts | None]:
    if inputs.evaluation is None:
        return await start_trainer_alone(
            config, stack, ground, purpose=loop.purpose, optimizer_steps=loop.optimizer_steps
        ), None
    # Nothing is sampled while the trainer learns, whatever `rollout.mode` is: engines sleep.
    rollout = config.rollout.model_copy(update={"mode": "sync"})
    config = config.model_copy(update={"rollout": rollout})
    engines = await open_synced(config, inputs.evaluation, stack, ground, loop=loop)
    return engines.trainer, engines


@asynccontextmanager
async def open_trainer(
    config: Config, folder: RunFolder, *, purpose: Purpose, optimizer_steps: int
) -> AsyncIterator[TrainerGroup]:
    """The trainer alone, of a run that saves nothing to go on from, in a Ray session of its own;
    both end with the block.

    folder: of the run, whose record says where the trainer is.

    Raises:
        WorkerError, ValueError: a rank did not start, or the model or layout is not supported.
    """
    async with AsyncExitStack() as stack:
        wanted = demand(config.megatron, None)
        ground = await open_ground(config, (), stack, wanted, can_stop=False)
        folder.saw_nodes(ground.nodes.records)
        yield await start_trainer_alone(
            config, stack, ground, purpose=purpose, optimizer_steps=optimizer_steps
        )
