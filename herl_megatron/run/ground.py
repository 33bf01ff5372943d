"""What a run stands on: how Ray, nodes, engines, scoring pool and trainer are started.

`run.parts` composes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from herl_megatron.cluster.engines import start_engines, stop_engines
from herl_megatron.cluster.nodes import Nodes, open_nodes
from herl_megatron.cluster.placement import Demand, Placement, ranks_beside_engines
from herl_megatron.cluster.ray_watch import RayWatch
from herl_megatron.cluster.reserve import reserve, run_device
from herl_megatron.cluster.restart import RestartingEngine, Restarts
from herl_megatron.cluster.session import ray_session
from herl_megatron.cluster.trainer import TrainerGroup, start_trainer
from herl_megatron.config.longest import longest_tokens
from herl_megatron.config.loop_keys import LoopKeys
from herl_megatron.config.paths import on_any_node, run_path
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.device import Transport, choose_transport
from herl_megatron.engine import EngineConfig
from herl_megatron.files.run_files import JUDGE_SPENT
from herl_megatron.rubrics.pool import ScoringPool
from herl_megatron.rubrics.scorer import open_judge
from herl_megatron.run.inputs import Inputs
from herl_megatron.run.stop import StopRequest, stop_request
from herl_megatron.types import DeviceKind, Prompt

if TYPE_CHECKING:  # it takes half a second to import, and most runs ask no judge
    from herl_megatron.rubrics.client import JudgeClient

T = TypeVar("T")

_TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Ground:
    """What is there before engines and trainer start."""

    judge: JudgeClient | None
    ray: RayWatch
    stop: StopRequest | None
    """Of a run that can be told to stop: one that trains and saves."""
    restarts: Restarts
    device: DeviceKind
    placement: Placement
    transport: Transport
    nodes: Nodes


async def open_ground(
    config: Config,
    prompts: Sequence[Prompt],
    stack: AsyncExitStack,
    wanted: Demand,
    *,
    can_stop: bool,
) -> Ground:
    """Judge, Ray, devices and nodes, in this order; `stack` ends what has started.

    prompts: all that will be scored. can_stop: whether the run saves itself when it is asked to
    (`run.stop`).
    """
    trains, spent = wanted.ranks > 0, run_path(config) / JUDGE_SPENT
    judge = await open_judge(config.judge, prompts, spent=spent, stops=not trains)
    if judge is not None:
        stack.push_async_callback(judge.close)
    ray = stack.enter_context(ray_session(config.cluster, run=run_path(config)))
    stop = stack.enter_context(stop_request()) if can_stop else None
    restarts = Restarts(config.rollout.max_engine_restarts)
    device = run_device(config.cluster)
    reservation = reserve(wanted, device=device, start_timeout_s=config.cluster.start_timeout_s)
    stack.callback(reservation.release)
    placement = reservation.placement
    transport: Transport = "shared_memory"
    if trains and wanted.engines:
        transport = choose_transport(
            config.weight_sync.transport,
            device=device,
            shares_gpus=ranks_beside_engines(placement) is not None,
        )
    nodes = await open_nodes(placement, model=config.model, run_folder=run_path(config))
    stack.push_async_callback(nodes.close)
    return Ground(judge, ray, stop, restarts, device, placement, transport, nodes)


async def start_sampling(
    config: Config, inputs: Inputs, stack: AsyncExitStack, ground: Ground
) -> tuple[list[RestartingEngine], ScoringPool]:
    """Engines and scoring pool at once (imports take most of the time)."""
    engines, pool = await asyncio.gather(
        _start_engines(config, inputs, ground, training=False),
        asyncio.to_thread(ScoringPool, config.scoring),
        return_exceptions=True,
    )
    _end_with(stack, engines, pool)
    return _started(engines), _started(pool)


async def start_all(
    config: Config, inputs: Inputs, stack: AsyncExitStack, ground: Ground, *, loop: LoopKeys
) -> tuple[list[RestartingEngine], ScoringPool, TrainerGroup]:
    """Start everything at once, but on GPUs the trainer after the engines."""
    starting = asyncio.create_task(_start_engines(config, inputs, ground, training=True))

    async def trainer_in_turn() -> TrainerGroup:
        if ground.device == "cuda":
            # vLLM measures what is left for its KV cache: of a GPU on which the trainer allocates
            # meanwhile it would get too little, or fail.
            await asyncio.wait([starting])
            if (error := starting.exception()) is not None:
                raise error
        return await _start_trainer(
            config, ground, purpose=loop.purpose, optimizer_steps=loop.optimizer_steps
        )

    engines, pool, trainer = await asyncio.gather(
        starting,
        asyncio.to_thread(ScoringPool, config.scoring),
        trainer_in_turn(),
        return_exceptions=True,
    )
    _end_with(stack, engines, pool)
    if not isinstance(trainer, BaseException):
        stack.callback(trainer.stop)
    running = _started(trainer)  # why the trainer did not start is said first
    return _started(engines), _started(pool), running


async def start_trainer_alone(
    config: Config,
    stack: AsyncExitStack,
    ground: Ground,
    *,
    purpose: Purpose,
    optimizer_steps: int,
) -> TrainerGroup:
    """The trainer of a run without engines."""
    trainer = await _start_trainer(config, ground, purpose=purpose, optimizer_steps=optimizer_steps)
    stack.callback(trainer.stop)
    return trainer


async def _start_trainer(
    config: Config, ground: Ground, *, purpose: Purpose, optimizer_steps: int
) -> TrainerGroup:
    return await start_trainer(
        trainer_sections(on_any_node(config), purpose=purpose),
        slots=ground.placement.trainer,
        device=ground.device,
        optimizer_steps=optimizer_steps,
        engines=ground.placement.engines,
        machines=ground.nodes.machines,
        transport=ground.transport,
    )


def _start_engines(
    config: Config, inputs: Inputs, ground: Ground, *, training: bool
) -> Coroutine[Any, Any, list[RestartingEngine]]:
    return start_engines(
        _engine_config(config, inputs, device=ground.device, training=training),
        rollout=config.rollout,
        sync_timeout_s=config.weight_sync.timeout_s,
        threads=config.cluster.threads_per_rank,
        slots=ground.placement.engines,
        restarts=ground.restarts,
        first_reads_folder=training and reads_folder(config),
    )


def _end_with(
    stack: AsyncExitStack,
    engines: list[RestartingEngine] | BaseException,
    pool: ScoringPool | BaseException,
) -> None:
    """Register what did start, before anything is raised."""
    if not isinstance(engines, BaseException):
        stack.push_async_callback(stop_engines, engines)
    if not isinstance(pool, BaseException):
        stack.callback(pool.shutdown)


def _started(found: T | BaseException) -> T:
    if isinstance(found, BaseException):
        raise found
    return found


def reads_folder(config: Config) -> bool:
    """Whether the gate compares, before the first sync, an engine that has read `model.path`."""
    from_folder = not (config.model.random_init or config.model.megatron_path)
    return bool(config.parity.every) and config.parity.baseline == "folder" and from_folder


def _engine_config(
    config: Config, inputs: Inputs, *, device: DeviceKind, training: bool
) -> EngineConfig:
    return EngineConfig(
        model_path=on_any_node(config).model.path,
        dtype=_TORCH_DTYPES[config.rollout.dtype],
        max_model_tokens=longest_tokens(config),
        max_num_seqs=config.rollout.max_num_seqs,
        kv_cache_bytes=config.rollout.kv_cache_bytes,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        tensor_parallel=config.rollout.tensor_parallel,
        device=device,
        quantization=config.rollout.quantization,
        fp32_output_layer=config.model.fp32_output_layer,
        random_weights=training,  # the first weight sync brings the trainer's
        end_token_ids=inputs.tokenizer.end_token_ids,
    )
