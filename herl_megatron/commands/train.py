"""The whole loop: sample, score and revise in one stream, learn, sync the weights, repeat."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from herl_megatron.batching.reward_spread import SpreadWatch
from herl_megatron.batching.rows import build_train_batch
from herl_megatron.commands.cycle import Cycle
from herl_megatron.commands.finished import result_of_finished
from herl_megatron.commands.recorded import open_recorded
from herl_megatron.commands.results import TrainResult
from herl_megatron.config.loop_keys import loop_keys
from herl_megatron.config.schema import Config
from herl_megatron.observability.timers import Timers
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.inputs import load_inputs
from herl_megatron.run.parts import TrainParts
from herl_megatron.run.rescue import require_scores, rescued
from herl_megatron.weight_sync.sync import SyncStats


async def train(config: Config) -> TrainResult:
    """Train with HeRL (or plain RLVR when `hindsight.enabled` is false) and export the policy.

    Raises:
        ValueError: bad input, found before any process is started where possible.
        RuntimeError, TimeoutError: a worker died, failed, hung or computes what the trainer does
            not, or nothing could be scored; what was done, if possible the policy, is on disk.
    """
    inputs = load_inputs(config, training=True)
    timers = Timers()
    with RunFolder.create(config, fingerprints=inputs.fingerprints) as folder:
        if (done := result_of_finished(config, folder)) is not None:
            return done
        async with AsyncExitStack() as stack:
            with timers("start"):
                parts = await stack.enter_async_context(open_recorded(config, inputs, folder))
            async with rescued(parts, folder):
                result = await _loop(config, parts, folder, timers)
    return result


async def _loop(
    config: Config, parts: TrainParts, folder: RunFolder, timers: Timers
) -> TrainResult:
    trainer, source, options = parts.trainer, parts.source, config.train
    turns, alive, watch = parts.turns, parts.liveness, SpreadWatch()
    loop = loop_keys(config, purpose="train")
    cycle = Cycle(loop, folder, timers, trainer, parts.checkpoints, engines=parts, rests=False)
    first = await cycle.begin()
    for step in folder.progress(range(first, loop.steps), "HeRL"):
        with timers("rollout"):
            groups = await source.next(step)
        with timers("rows"):
            rows = build_train_batch(
                groups,
                config.hindsight,
                config.algorithm,
                prompts_per_optimizer_step=options.prompts_per_optimizer_step,
                run_seed=config.run.seed,
                step=step,
            )
        folder.log_rollouts(f"step_{step:06d}", groups, rows.groups)  # learning may fail by them
        require_scores(groups, step, full_reward=config.hindsight.threshold)
        alive.see(groups)
        spread = watch.see(step, groups, [group.stats for group in rows.groups])
        with timers("turns"):
            await turns.to_trainer()
        with timers("train"):
            learned = await trainer.train_step(rows.batch, step=step)
        with timers("rollout"):  # what is still being sampled beside the training
            await source.drain()
        with timers("turns"):
            await turns.to_engines()
        with timers("weight_sync"):
            sync = await parts.sync_weights(step + 1)
        times = {f"time/{phase}_s": seconds for phase, seconds in timers.lap().items()}
        values = _metrics(parts, rows.metrics, learned, sync) | spread | times
        folder.log(step, values | await parts.measure.step(values, rows.batch))
        await cycle.after_step(step + 1)
    if options.export and loop.steps:
        with timers("export"):
            await alive.require(loop.steps)
    after = await cycle.end()
    folder.finish(before=cycle.before, after=after, timers=timers)
    return TrainResult(folder.path, folder.policy if options.export else None, cycle.before, after)


def _metrics(
    parts: TrainParts, rows: Mapping[str, float], learned: Mapping[str, float], sync: SyncStats
) -> dict[str, float]:
    """One step's numbers by `stage/name`; totals over it (`rows`) before means of that name."""
    named = {f"train/{name}": value for name, value in learned.items()} | parts.restarts.metrics()
    return named | dict(rows) | parts.source.metrics() | parts.scorer.metrics() | sync.metrics()
