"""Build a run's parts from its configuration, all at once, and end them all.

What can be wrong in files (tokenizer, prompts, limits) is found by `load_inputs` before Ray starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from herl_megatron.cluster.checkpointer import Checkpointer
from herl_megatron.cluster.engines import start_engines, stop_engines
from herl_megatron.cluster.nodes import open_nodes
from herl_megatron.cluster.placement import DeviceKind, Placement, ranks_beside_engines
from herl_megatron.cluster.reserve import reserve, run_device
from herl_megatron.cluster.restart import RestartingEngine, Restarts
from herl_megatron.cluster.session import ray_session
from herl_megatron.cluster.stop import stop_request
from herl_megatron.cluster.trainer import TrainerGroup, start_trainer
from herl_megatron.cluster.turns import Turns
from herl_megatron.config.paths import on_any_node
from herl_megatron.config.schema import Config
from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.data.prompts import (
    check_no_leakage,
    check_prompt_lengths,
    load_prompts,
)
from herl_megatron.device import Transport, choose_transport
from herl_megatron.hindsight.prompts import check_prompts
from herl_megatron.hindsight.replay import check_replayable
from herl_megatron.rollout.engine import EngineConfig, RolloutEngine
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.rollout.schedule import GroupSource, open_source, prompts_in_flight
from herl_megatron.rubrics.checks.registry import load_check_modules
from herl_megatron.rubrics.pool import ScoringPool
from herl_megatron.rubrics.scorer import Scorer, open_judge, require_judge
from herl_megatron.types import Prompt, SamplingSettings
from herl_megatron.weight_sync.parity import ParityGate, open_gate
from herl_megatron.weight_sync.sync import EnginesLost, SyncStats, WeightSync

logger = logging.getLogger(__name__)

_TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Inputs:
    """Everything read from disk: checked, and cheap compared with what starts next."""

    tokenizer: ChatTokenizer
    train: tuple[Prompt, ...]
    eval: tuple[Prompt, ...]


def load_inputs(config: Config, *, training: bool) -> Inputs:
    """Read and check tokenizer and prompts.

    Raises:
        ValueError: a bad row (file and line), a prompt over the limit, a tokenizer without chat
            template or end token.
    """
    load_check_modules(config.scoring.check_modules)  # before rows that name a user's own check
    tokenizer = ChatTokenizer(config.model.path)
    train = tuple(load_prompts(config.data.train)) if training else ()
    held_out = tuple(load_prompts(config.data.eval)) if config.data.eval else ()
    for prompts in (train, held_out):
        check_prompt_lengths(prompts, tokenizer, config.data.max_prompt_tokens)
    if training and config.hindsight.enabled:
        if config.hindsight.method == "replay":
            check_replayable(train)
        else:
            check_prompts(train, config.hindsight.prompt_style)
    check_no_leakage(train, held_out)
    require_judge(config.judge, (*train, *held_out))
    if training and prompts_in_flight(config) > len(train):
        raise ValueError(
            f"train.prompts_per_step is {config.train.prompts_per_step}, so in rollout.mode"
            f" {config.rollout.mode!r} {prompts_in_flight(config)} prompts are sampled together,"
            f" but {config.data.train} has {len(train)} rows; lower it or give more rows"
        )
    return Inputs(tokenizer=tokenizer, train=train, eval=held_out)


@dataclass(frozen=True)
class Parts:
    """The running parts of one run."""

    inputs: Inputs
    source: GroupSource | None
    """None in an evaluation, like `trainer`, `weight_sync`, `turns` and `checkpoints`."""
    scorer: Scorer
    engines: Sequence[RestartingEngine]
    pipeline: RolloutPipeline
    eval_pipeline: RolloutPipeline
    trainer: TrainerGroup | None
    weight_sync: WeightSync | None
    turns: Turns | None
    parity: ParityGate | None
    """Also None with `parity.every` 0."""
    checkpoints: Checkpointer | None
    restarts: Restarts
    """Of engines, counted over the run."""

    async def sync_weights(self, version: int) -> SyncStats:
        """Bring every engine to the trainer's weights and call them `version`.

        Raises:
            ParityError: the gate was due and an engine does not compute what the trainer does.
        """
        gate = self.parity if self.parity is not None and self.parity.due(version) else None
        if gate is None:
            return await self._send_weights(version)
        if self.turns is None or not self.turns.drops_weights:
            await gate.prime(version)
        stats = await self._send_weights(version)
        return replace(stats, parity=await gate.check(version))

    async def _send_weights(self, version: int) -> SyncStats:
        """The sync; engines lost on the way are started anew, which gives them the weights too."""
        assert self.weight_sync and self.trainer, "an evaluation has no trainer to sync from"
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
async def open_parts(config: Config, inputs: Inputs, *, training: bool) -> AsyncIterator[Parts]:
    """Start Ray, engines, scoring pool and (when training) the trainer; end all of them after.

    Raises:
        WorkerError, ValueError: a part did not start, or the judge does not answer; whatever had
            started is ended first.
    """
    async with AsyncExitStack() as stack:
        judge = await open_judge(config.judge, (*inputs.train, *inputs.eval))
        if judge is not None:
            stack.push_async_callback(judge.close)
        stack.enter_context(ray_session(config.cluster))
        stop = stack.enter_context(stop_request()) if training else None
        restarts = Restarts(config.rollout.max_engine_restarts)
        device = run_device(config.cluster)
        reservation = reserve(config, device=device, trains=training)
        stack.callback(reservation.release)
        transport: Transport = "shared_memory"
        if training:
            transport = choose_transport(
                config.weight_sync.transport,
                device=device,
                shares_gpus=ranks_beside_engines(reservation.placement) is not None,
            )
        nodes = await open_nodes(config, reservation.placement)
        stack.push_async_callback(nodes.close)
        engines, pool, trainer = await _start_all(
            config,
            inputs,
            stack,
            restarts,
            placement=reservation.placement,
            machines=nodes.machines,
            device=device,
            transport=transport,
        )
        scorer = Scorer(pool, judge, answer_after=config.scoring.answer_after)
        pipeline, eval_pipeline = _pipelines(config, inputs, engines, scorer)
        source = sync = turns = gate = checkpoints = None
        if trainer is not None:
            if config.rollout.truncated:
                logger.info(
                    "no mismatch statistics: %s, which truncates the engine's distribution",
                    config.rollout.truncated,
                )
            source = open_source(config, pipeline, inputs.train)
            stack.push_async_callback(source.close)
            sync = WeightSync(trainer, engines, config.weight_sync, transport=transport)
            stack.callback(sync.close)
            if sync.folder is not None:
                await nodes.open_buckets(sync.folder, sync.needed_bytes)
            turns = Turns(trainer, engines, config.rollout)
            gate = open_gate(
                config,
                trainer,
                engines,
                prompts=inputs.train,
                prompt_ids=inputs.tokenizer.prompt_ids,
                max_model_tokens=_max_model_tokens(config),
            )
            restarts.refresh = _refresher(trainer, sync, gate)
            checkpoints = Checkpointer(config, trainer, source, stop)
            stack.push_async_callback(checkpoints.close)
        yield Parts(
            inputs=inputs,
            source=source,
            scorer=scorer,
            engines=engines,
            pipeline=pipeline,
            eval_pipeline=eval_pipeline,
            trainer=trainer,
            weight_sync=sync,
            turns=turns,
            parity=gate,
            checkpoints=checkpoints,
            restarts=restarts,
        )


def _pipelines(
    config: Config, inputs: Inputs, engines: Sequence[RolloutEngine], scorer: Scorer
) -> tuple[RolloutPipeline, RolloutPipeline]:
    """Of training and of evaluation, over the same engines."""
    training = RolloutPipeline(
        engines,
        scorer,
        inputs.tokenizer,
        config.rollout,
        config.hindsight if config.hindsight.enabled else None,
        max_experience_tokens=config.data.max_experience_tokens,
        answer_after=config.scoring.answer_after,
        seed=config.run.seed,
        scoring_paused_s=scorer.paused_s,
        start_judging=scorer.start_judging,
    )
    evaluation = RolloutPipeline(
        engines,
        scorer,
        inputs.tokenizer,
        config.rollout,
        None,
        max_experience_tokens=config.data.max_experience_tokens,
        seed=config.eval.seed,
        group_size=config.eval.samples_per_prompt,
        sampling=_eval_sampling(config),
        scoring_paused_s=scorer.paused_s,
        start_judging=scorer.start_judging,
    )
    return training, evaluation


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


async def _start_all(
    config: Config,
    inputs: Inputs,
    stack: AsyncExitStack,
    restarts: Restarts,
    *,
    placement: Placement,
    machines: Mapping[str, str],
    device: DeviceKind,
    transport: Transport,
) -> tuple[list[RestartingEngine], ScoringPool, TrainerGroup | None]:
    """Start everything at once (imports take most of the time), but on GPUs the trainer after the
    engines; `stack` ends what has started."""
    training = bool(placement.trainer)
    engine_config = _engine_config(config, inputs, device=device, training=training)
    starting = asyncio.create_task(
        start_engines(config, engine_config, slots=placement.engines, restarts=restarts)
    )

    async def trainer_in_turn() -> TrainerGroup | None:
        if not training:
            return None
        if device == "cuda":
            # vLLM measures what is left for its KV cache: of a GPU on which the trainer allocates
            # meanwhile it would get too little, or fail.
            await asyncio.wait([starting])
            if starting.exception() is not None:
                return None
        return await start_trainer(
            config,
            slots=placement.trainer,
            device=device,
            optimizer_steps=_optimizer_steps(config),
            engines=placement.engines,
            machines=machines,
            transport=transport,
        )

    engines, pool, trainer = await asyncio.gather(
        starting,
        asyncio.to_thread(ScoringPool, config.scoring),
        trainer_in_turn(),
        return_exceptions=True,
    )
    # Register what did start before anything is raised.
    if not isinstance(engines, BaseException):
        stack.push_async_callback(stop_engines, engines)
    if not isinstance(pool, BaseException):
        stack.callback(pool.shutdown)
    if isinstance(trainer, TrainerGroup):
        stack.callback(trainer.stop)
    if isinstance(trainer, BaseException):
        raise trainer
    if isinstance(engines, BaseException):
        raise engines
    if isinstance(pool, BaseException):
        raise pool
    return engines, pool, trainer


def _optimizer_steps(config: Config) -> int:
    """Optimizer steps of the whole run, the length of the learning rate's schedule."""
    return config.train.steps * config.train.optimizer_steps_per_step


def _eval_sampling(config: Config) -> SamplingSettings:
    return SamplingSettings(
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        max_tokens=config.rollout.max_response_tokens,
    )


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
        random_weights=training,  # the first weight sync brings the trainer's
        end_token_ids=inputs.tokenizer.end_token_ids,
    )
