"""Build a run's parts from its configuration, all at once, and end them all.

What can be wrong in files is found before, by `run.inputs`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from herl_megatron.cluster.placement import demand
from herl_megatron.cluster.ray_watch import RayWatch
from herl_megatron.cluster.restart import RestartingEngine, Restarts
from herl_megatron.cluster.trainer import TrainerGroup
from herl_megatron.config.longest import eval_response_tokens, longest_tokens
from herl_megatron.config.loop_keys import LoopKeys, loop_keys
from herl_megatron.config.schema import Config
from herl_megatron.engine import RolloutEngine
from herl_megatron.observability.phases import phases
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.liveness import PROBED_PROMPTS, LivenessProbe
from herl_megatron.rollout.modes import GroupSource, open_source
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.rubrics.group_reward import GroupReward, open_group_reward
from herl_megatron.rubrics.scorer import Scorer
from herl_megatron.run.checkpointer import Checkpointer
from herl_megatron.run.ground import (
    Ground,
    open_ground,
    reads_folder,
    start_all,
    start_sampling,
)
from herl_megatron.run.inputs import Inputs
from herl_megatron.run.measure import Measure, log_prob_passes, throughput
from herl_megatron.run.turns import Turns
from herl_megatron.types import SamplingSettings
from herl_megatron.weight_sync.parity import ParityGate, open_gate
from herl_megatron.weight_sync.parity_limits import tolerance_for
from herl_megatron.weight_sync.sync import EnginesLost, SyncStats, WeightSync

logger = logging.getLogger(__name__)


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
class SyncedParts(EvalParts):
    """The same beside a trainer, whose weights the engines get."""

    trainer: TrainerGroup
    weight_sync: WeightSync
    turns: Turns
    parity: ParityGate | None
    """None with `parity.every` 0."""

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


@dataclass(frozen=True)
class TrainParts(SyncedParts):
    """The running parts of a training run, which evaluates too."""

    source: GroupSource
    checkpoints: Checkpointer
    liveness: LivenessProbe
    measure: Measure
    ray: RayWatch
    gpus_per_node: int
    """That ranks and engines use of the fullest node."""


@asynccontextmanager
async def open_eval_parts(config: Config, inputs: Inputs) -> AsyncIterator[EvalParts]:
    """Start Ray, engines and scoring pool; end all of them after.

    Raises:
        WorkerError, ValueError: a part did not start, or the judge does not answer; whatever had
            started is ended first.
    """
    async with AsyncExitStack() as stack:
        wanted = demand(None, config.rollout)
        ground = await open_ground(config, inputs.eval, stack, wanted, can_stop=False)
        engines, pool = await start_sampling(config, inputs, stack, ground)
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
        wanted, prompts = demand(config.megatron, config.rollout), (*inputs.train, *inputs.eval)
        ground = await open_ground(config, prompts, stack, wanted, can_stop=True)
        if (reward := await open_group_reward(config.scoring)) is not None:
            stack.callback(reward.close)
        loop = loop_keys(config, purpose="train")
        synced = await open_synced(config, inputs, stack, ground, loop=loop, group_reward=reward)
        if config.rollout.truncated:
            logger.info(
                "no mismatch statistics: %s, which truncates the engine's distribution",
                config.rollout.truncated,
            )
        pipeline = _train_pipeline(config, inputs, synced.engines, synced.scorer)
        source = _open_source(config, inputs, pipeline)
        stack.push_async_callback(source.close)
        liveness = _liveness(config, inputs, synced.engines)
        checkpoints = Checkpointer(
            config,
            synced.trainer,
            source,
            ground.stop,
            fingerprints=inputs.fingerprints,
            require_alive=liveness.require,
            budget=ground.judge.budget if ground.judge else None,
        )
        stack.push_async_callback(checkpoints.close)
        yield TrainParts(
            **vars(synced),
            source=source,
            checkpoints=checkpoints,
            liveness=liveness,
            ray=ground.ray,
            gpus_per_node=ground.placement.gpus_per_node,
            measure=_measure(config, synced),
        )


async def open_synced(
    config: Config,
    inputs: Inputs,
    stack: AsyncExitStack,
    ground: Ground,
    *,
    loop: LoopKeys,
    group_reward: GroupReward | None = None,
) -> SyncedParts:
    """Engines, scoring pool and trainer, and the weights' way from the one to the other; `stack`
    ends what has started.

    group_reward: of training rollouts.

    Raises:
        WorkerError, ValueError: as `open_eval_parts`.
        ParityError: trainer and engine take the same folder for different models.
    """
    engines, pool, trainer = await start_all(config, inputs, stack, ground, loop=loop)
    answer_after = config.scoring.answer_after
    scorer = Scorer(pool, ground.judge, answer_after=answer_after, group_reward=group_reward)
    sync = WeightSync(trainer, engines, config.weight_sync, transport=ground.transport)
    stack.callback(sync.close)
    if sync.folder is not None:
        await ground.nodes.open_buckets(sync.folder, sync.needed_bytes)
    gate = await _gate(config, inputs, trainer, engines)
    ground.restarts.refresh = _refresher(trainer, sync, gate)
    return SyncedParts(
        inputs=inputs,
        scorer=scorer,
        engines=engines,
        eval_pipeline=_eval_pipeline(config, inputs, engines, scorer),
        restarts=ground.restarts,
        nodes=ground.nodes.records,
        trainer=trainer,
        weight_sync=sync,
        turns=Turns(trainer, engines, config.rollout),
        parity=gate,
    )


def _measure(config: Config, parts: SyncedParts) -> Measure:
    rates = throughput(
        config.model,
        config.megatron,
        config.rollout,
        log_prob_passes=log_prob_passes(config.train, config.algorithm),
        device=parts.trainer.device,
        gpu_table=config.cluster.gpu_table,
    )
    return Measure(rates, parts.trainer, parts.engines)


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
        prompts=inputs.train or inputs.eval,
        prompt_ids=inputs.tokenizer.prompt_ids,
        max_model_tokens=longest_tokens(config),
    )
    if gate is not None and reads_folder(config):
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


def _eval_sampling(config: Config) -> SamplingSettings:
    return SamplingSettings(
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        max_tokens=eval_response_tokens(config),
    )
