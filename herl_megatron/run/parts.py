"""Build a run's parts from its configuration, all at once, and end them all.

What can be wrong in files is found before, by `run.inputs`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from herl_megatron.cluster.engines import start_engines, stop_engines
from herl_megatron.cluster.nodes import Nodes, open_nodes
from herl_megatron.cluster.placement import (
    Demand,
    Placement,
    demand,
    ranks_beside_engines,
)
from herl_megatron.cluster.ray_watch import RayWatch
from herl_megatron.cluster.reserve import reserve, run_device
from herl_megatron.cluster.restart import RestartingEngine, Restarts
from herl_megatron.cluster.session import ray_session
from herl_megatron.cluster.trainer import TrainerGroup, start_trainer
from herl_megatron.config.paths import on_any_node, run_path
from herl_megatron.config.schema import Config
from herl_megatron.config.trainer_sections import trainer_sections
from herl_megatron.device import Transport, choose_transport
from herl_megatron.engine import EngineConfig, RolloutEngine
from herl_megatron.files.run_files import JUDGE_SPENT
from herl_megatron.observability.phases import phases
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.liveness import PROBED_PROMPTS, LivenessProbe
from herl_megatron.rollout.modes import GroupSource, open_source
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.rubrics.group_reward import open_group_reward
from herl_megatron.rubrics.pool import ScoringPool
from herl_megatron.rubrics.scorer import Scorer, open_judge
from herl_megatron.run.checkpointer import Checkpointer
from herl_megatron.run.inputs import Inputs
from herl_megatron.run.measure import Measure, log_prob_passes, throughput
from herl_megatron.run.stop import StopRequest, stop_request
from herl_megatron.run.turns import Turns
from herl_megatron.types import DeviceKind, SamplingSettings
from herl_megatron.weight_sync.parity import ParityGate, open_gate
from herl_megatron.weight_sync.parity_limits import tolerance_for
from herl_megatron.weight_sync.sync import EnginesLost, SyncStats, WeightSync

if TYPE_CHECKING:  # it takes half a second to import, and most runs ask no judge
    from herl_megatron.rubrics.client import JudgeClient

logger = logging.getLogger(__name__)
T = TypeVar("T")

_TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class EvalParts:
    """What samples and scores: the running parts of an evaluation."""

    inputs: Inputs
    scorer: Scorer
    engines: Sequence[RestartingEngine]
    eval_pipeline: RolloutPipeline
    restarts: Restarts
    """Of engines, counted over the run."""
    nodes: Sequence[Mapping[str, Any]]
    """`Nodes.records`; none of a run on one."""


@dataclass(frozen=True)
class TrainParts(EvalParts):
    """The running parts of a training run, which evaluates too."""

    source: GroupSource
    trainer: TrainerGroup
    weight_sync: WeightSync
    turns: Turns
    parity: ParityGate | None
    """None with `parity.every` 0."""
    checkpoints: Checkpointer
    liveness: LivenessProbe
    measure: Measure
    ray: RayWatch
    gpus_per_node: int
    """That ranks and engines use of the fullest node."""

    async def sync_weights(self, version: int) -> SyncStats:
        """Bring every engine to the trainer's weights and call them `version`.

        Raises:
            ParityError: the gate was due and an engine does not compute what the trainer does.
        """
        gate = self.parity if self.parity is not None and self.parity.due(version) else None
        if gate is None:
            return await self._send_weights(version)
        if not self.turns.drops_weights:
            await gate.prime(version)
        stats = await self._send_weights(version)
        return replace(stats, parity=await gate.check(version))

    async def _send_weights(self, version: int) -> SyncStats:
        """The sync; engines lost on the way are started anew, which gives them the weights too."""
        try:
            async with self.trainer.steady():  # nor is an engine brought up through the same files
                epochs = [engine.epoch for engine in self.engines]
                return await self.weight_sync.run(version)
        except EnginesLost as sync:
            recoveries = [
                self.engines[index].recover(epochs[index], lost)
                for index, lost in sync.lost.items()
            ]
            await asyncio.gather(*recoveries)
            return sync.stats


@asynccontextmanager
async def open_eval_parts(config: Config, inputs: Inputs) -> AsyncIterator[EvalParts]:
    """Start Ray, engines and scoring pool; end all of them after.

    Raises:
        WorkerError, ValueError: a part did not start, or the judge does not answer; whatever had
            started is ended first.
    """
    async with AsyncExitStack() as stack:
        ground = await _open_ground(config, inputs, stack, demand(None, config.rollout))
        engines, pool = await _start_sampling(config, inputs, stack, ground)
        scorer = Scorer(pool, ground.judge, answer_after=config.scoring.answer_after)
        yield EvalParts(
            inputs=inputs,
            scorer=scorer,
            engines=engines,
            eval_pipeline=_eval_pipeline(config, inputs, engines, scorer),
            restarts=ground.restarts,
            nodes=ground.nodes.records,
        )


@dataclass(frozen=True)
class RolloutParts(EvalParts):
    """The running parts that sample and score a training run's prompts, without a trainer."""

    source: GroupSource


@asynccontextmanager
async def open_rollout_parts(config: Config, inputs: Inputs) -> AsyncIterator[RolloutParts]:
    """As `open_eval_parts`, and the stream of training prompts; engines read `model.path`."""
    async with open_eval_parts(config, inputs) as parts, AsyncExitStack() as stack:
        pipeline = _train_pipeline(config, inputs, parts.engines, parts.scorer)
        source = _open_source(config, inputs, pipeline)
        stack.push_async_callback(source.close)
        yield RolloutParts(**vars(parts), source=source)


def _open_source(config: Config, inputs: Inputs, pipeline: RolloutPipeline) -> GroupSource:
    return open_source(
        pipeline,
        inputs.train,
        train=config.train,
        rollout=config.rollout,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )


@asynccontextmanager
async def open_train_parts(config: Config, inputs: Inputs) -> AsyncIterator[TrainParts]:
    """Start Ray, engines, scoring pool and trainer; end all of them after.

    Raises:
        WorkerError, ValueError: as `open_eval_parts`.
        ParityError: trainer and engine take the same folder for different models.
    """
    async with AsyncExitStack() as stack:
        wanted = demand(config.megatron, config.rollout)
        ground = await _open_ground(config, inputs, stack, wanted)
        if (reward := await open_group_reward(config.scoring)) is not None:
            stack.callback(reward.close)
        engines, pool, trainer = await _start_all(config, inputs, stack, ground)
        answer_after = config.scoring.answer_after
        scorer = Scorer(pool, ground.judge, answer_after=answer_after, group_reward=reward)
        pipeline = _train_pipeline(config, inputs, engines, scorer)
        eval_pipeline = _eval_pipeline(config, inputs, engines, scorer)
        if config.rollout.truncated:
            logger.info(
                "no mismatch statistics: %s, which truncates the engine's distribution",
                config.rollout.truncated,
            )
        source = _open_source(config, inputs, pipeline)
        stack.push_async_callback(source.close)
        sync = WeightSync(trainer, engines, config.weight_sync, transport=ground.transport)
        stack.callback(sync.close)
        if sync.folder is not None:
            await ground.nodes.open_buckets(sync.folder, sync.needed_bytes)
        turns = Turns(trainer, engines, config.rollout)
        gate = await _gate(config, inputs, trainer, engines)
        ground.restarts.refresh = _refresher(trainer, sync, gate)
        liveness = _liveness(config, inputs, engines)
        checkpoints = Checkpointer(
            config,
            trainer,
            source,
            ground.stop,
            fingerprints=inputs.fingerprints,
            require_alive=liveness.require,
            budget=ground.judge.budget if ground.judge else None,
        )
        stack.push_async_callback(checkpoints.close)
        yield TrainParts(
            inputs=inputs,
            scorer=scorer,
            engines=engines,
            eval_pipeline=eval_pipeline,
            restarts=ground.restarts,
            nodes=ground.nodes.records,
            source=source,
            trainer=trainer,
            weight_sync=sync,
            turns=turns,
            parity=gate,
            checkpoints=checkpoints,
            liveness=liveness,
            ray=ground.ray,
            gpus_per_node=ground.placement.gpus_per_node,
            measure=Measure(
                throughput(
                    config.model,
                    config.megatron,
                    config.rollout,
                    log_prob_passes=log_prob_passes(config.train, config.algorithm),
                    device=trainer.device,
                    gpu_table=config.cluster.gpu_table,
                ),
                trainer,
                engines,
            ),
        )


@dataclass(frozen=True)
class _Ground:
    """What is there before engines and trainer start."""

    judge: JudgeClient | None
    ray: RayWatch
    stop: StopRequest | None
    """Of a run that can be told to stop: one that trains."""
    restarts: Restarts
    device: DeviceKind
    placement: Placement
    transport: Transport
    nodes: Nodes


async def _open_ground(
    config: Config, inputs: Inputs, stack: AsyncExitStack, wanted: Demand
) -> _Ground:
    """Judge, Ray, devices and nodes, in this order; `stack` ends what has started."""
    trains = wanted.ranks > 0
    prompts, spent = (*inputs.train, *inputs.eval), run_path(config) / JUDGE_SPENT
    judge = await open_judge(config.judge, prompts, spent=spent, stops=not trains)
    if judge is not None:
        stack.push_async_callback(judge.close)
    ray = stack.enter_context(ray_session(config.cluster, run=run_path(config)))
    stop = stack.enter_context(stop_request()) if trains else None
    restarts = Restarts(config.rollout.max_engine_restarts)
    device = run_device(config.cluster)
    reservation = reserve(wanted, device=device, start_timeout_s=config.cluster.start_timeout_s)
    stack.callback(reservation.release)
    placement = reservation.placement
    transport: Transport = "shared_memory"
    if trains:
        transport = choose_transport(
            config.weight_sync.transport,
            device=device,
            shares_gpus=ranks_beside_engines(placement) is not None,
        )
    nodes = await open_nodes(placement, model=config.model, run_folder=run_path(config))
    stack.push_async_callback(nodes.close)
    return _Ground(judge, ray, stop, restarts, device, placement, transport, nodes)


async def _gate(
    config: Config, inputs: Inputs, trainer: TrainerGroup, engines: Sequence[RolloutEngine]
) -> ParityGate | None:
    """The gate, which has measured rounding if it can: no weights were synced, no checkpoint read,
    so trainer and first engine have what each of them read from one folder."""
    gate = open_gate(
        trainer,
        engines,
        parity=config.parity,
        tolerance=tolerance_for(
            config.parity,
            config.rollout.dtype,
            config.megatron.precision,
            fp8=bool(config.rollout.quantization or config.megatron.fp8),
        ),
        seed=config.run.seed,
        prompts=inputs.train,
        prompt_ids=inputs.tokenizer.prompt_ids,
        max_model_tokens=_max_model_tokens(config),
    )
    if gate is not None and _reads_folder(config):
        with phases("comparing engine and trainer as loaded", announce=True):
            await gate.measure_noise()
    return gate


def _liveness(config: Config, inputs: Inputs, engines: Sequence[RolloutEngine]) -> LivenessProbe:
    # Evenly spaced: rows next to each other are often of one kind, with one right answer.
    prompts = inputs.train[:: max(1, len(inputs.train) // PROBED_PROMPTS)][:PROBED_PROMPTS]
    ids = [inputs.tokenizer.prompt_ids(prompt.messages) for prompt in prompts]
    return LivenessProbe(engines[0], ids, config.rollout, seed=config.run.seed)


def _train_pipeline(
    config: Config, inputs: Inputs, engines: Sequence[RolloutEngine], scorer: Scorer
) -> RolloutPipeline:
    return RolloutPipeline(
        engines,
        scorer.of_training(),
        inputs.tokenizer,
        config.rollout,
        open_stage(
            config.hindsight,
            config.rollout,
            max_tokens=config.data.max_experience_tokens,
            answer_after=config.scoring.answer_after,
        ),
        seed=config.run.seed,
    )


def _eval_pipeline(
    config: Config, inputs: Inputs, engines: Sequence[RolloutEngine], scorer: Scorer
) -> RolloutPipeline:
    return RolloutPipeline(
        engines,
        scorer,
        inputs.tokenizer,
        config.rollout,
        None,
        seed=config.eval.seed,
        group_size=config.eval.samples_per_prompt,
        sampling=_eval_sampling(config),
    )


def _refresher(
    trainer: TrainerGroup, sync: WeightSync, gate: ParityGate | None
) -> Callable[[RolloutEngine], Awaitable[None]]:
    """How an engine that was started anew gets the trainer's weights, and is checked."""

    async def refresh(engine: RolloutEngine) -> None:
        async with trainer.steady() as version:
            await sync.run(version, engines=[engine])
            if gate is not None:
                await gate.check_restarted(engine, version)

    return refresh


async def _start_sampling(
    config: Config, inputs: Inputs, stack: AsyncExitStack, ground: _Ground
) -> tuple[list[RestartingEngine], ScoringPool]:
    """Engines and scoring pool at once (imports take most of the time)."""
    engines, pool = await asyncio.gather(
        _start_engines(config, inputs, ground, training=False),
        asyncio.to_thread(ScoringPool, config.scoring),
        return_exceptions=True,
    )
    _end_with(stack, engines, pool)
    return _started(engines), _started(pool)


async def _start_all(
    config: Config, inputs: Inputs, stack: AsyncExitStack, ground: _Ground
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
        return await start_trainer(
            trainer_sections(on_any_node(config), purpose="train"),
            slots=ground.placement.trainer,
            device=ground.device,
            optimizer_steps=_optimizer_steps(config),
            engines=ground.placement.engines,
            machines=ground.nodes.machines,
            transport=ground.transport,
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


def _start_engines(
    config: Config, inputs: Inputs, ground: _Ground, *, training: bool
) -> Coroutine[Any, Any, list[RestartingEngine]]:
    return start_engines(
        _engine_config(config, inputs, device=ground.device, training=training),
        rollout=config.rollout,
        sync_timeout_s=config.weight_sync.timeout_s,
        threads=config.cluster.threads_per_rank,
        slots=ground.placement.engines,
        restarts=ground.restarts,
        first_reads_folder=training and _reads_folder(config),
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


def _optimizer_steps(config: Config) -> int:
    """Optimizer steps of the whole run, the length of the learning rate's schedule."""
    return config.train.step_count * config.train.optimizer_steps_per_step


def _eval_sampling(config: Config) -> SamplingSettings:
    return SamplingSettings(
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        max_tokens=config.rollout.max_response_tokens,
    )


def _reads_folder(config: Config) -> bool:
    """Whether the gate compares, before the first sync, an engine that has read `model.path`."""
    from_folder = not (config.model.random_init or config.model.megatron_path)
    return bool(config.parity.every) and config.parity.baseline == "folder" and from_folder


def _max_model_tokens(config: Config) -> int:
    """Longest sequence that an engine must hold."""
    longest_prompt = max(config.data.max_prompt_tokens, config.data.max_experience_tokens)
    return longest_prompt + config.rollout.max_response_tokens


def _engine_config(
    config: Config, inputs: Inputs, *, device: DeviceKind, training: bool
) -> EngineConfig:
    return EngineConfig(
        model_path=on_any_node(config).model.path,
        dtype=_TORCH_DTYPES[config.rollout.dtype],
        max_model_tokens=_max_model_tokens(config),
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
