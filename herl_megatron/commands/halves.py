"""Half of the loop alone (`train.only`): where is a fault, in what is drawn or in what is learnt?

`rollouts` draws what training would draw of the weights in `model.path`; `learning` takes the
groups that an earlier run kept (`train.keep_groups`) through rows, loss and optimizer. Learning on
a run's own groups from its own start gives its weights bit for bit on the CPU (same layout).
"""

from __future__ import annotations

from pathlib import Path

from herl_megatron.batching.rows import StepRows, build_train_batch
from herl_megatron.commands.results import TrainResult
from herl_megatron.config.schema import Config
from herl_megatron.data.chat import open_chat_tokenizer
from herl_megatron.data.fingerprints import fingerprints
from herl_megatron.observability.saved_groups import read_groups, saved_steps
from herl_megatron.observability.timers import Timers
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.inputs import algorithm_hooks, load_inputs
from herl_megatron.run.model_files import check_model, check_vocabulary
from herl_megatron.run.parts import open_rollout_parts
from herl_megatron.run.rescue import require_scores
from herl_megatron.run.tuning_parts import open_trainer
from herl_megatron.types import ScoredGroup


async def half(config: Config) -> TrainResult:
    """What `train.only` says.

    Raises:
        ValueError: bad input, found before any process is started.
        RuntimeError: a worker died, failed or hung.
    """
    if config.train.only == "rollouts":
        return await _rollouts(config)
    return await _learning(config)


async def _rollouts(config: Config) -> TrainResult:
    inputs = load_inputs(config, training=True)
    timers = Timers()
    with RunFolder.create(config, fingerprints=inputs.fingerprints) as folder:
        async with open_rollout_parts(config, inputs) as parts:
            folder.saw_nodes(parts.nodes)
            timers.lap()
            for step in folder.progress(range(config.train.step_count), "rollouts"):
                with timers("rollout"):
                    groups = await parts.source.next(step)
                rows = _rows(config, groups, step)
                folder.log_rollouts(f"step_{step:06d}", groups, rows.groups)
                require_scores(groups, step, full_reward=config.hindsight.threshold)
                drawn = dict(rows.metrics) | parts.source.metrics() | parts.scorer.metrics()
                folder.log(step, drawn | parts.restarts.metrics() | _times(timers))
            await parts.source.drain()
        folder.finish(before=None, after=None, timers=timers)
        return TrainResult(folder.path, None, None, None)


async def _learning(config: Config) -> TrainResult:
    hooks = algorithm_hooks(config)
    files = saved_steps(Path(config.train.groups_from), config.train.step_count)
    check_model(config.model, trains=True)
    tokenizer = open_chat_tokenizer(config.model, config.data)
    check_vocabulary(tokenizer, config.model)
    ours = fingerprints(config.model, tokenizer, train=(), held_out=(), check_modules=(),
                        text_files={}, hooks=hooks)  # fmt: skip
    for _, file in files:  # a damaged one is found now, not after the steps before it
        _require_same(ours, read_groups(file)[1], file)
    per_step = config.train.optimizer_steps_per_step
    timers = Timers()
    with RunFolder.create(config, fingerprints=ours) as folder:
        async with open_trainer(
            config, folder, purpose="train", optimizer_steps=(files[-1][0] + 1) * per_step
        ) as trainer:
            timers.lap()
            for index in folder.progress(range(len(files)), "learning"):
                step, file = files[index]
                groups, _ = read_groups(file)
                with timers("rows"):
                    rows = _rows(config, groups, step)
                with timers("train"):
                    learned = await trainer.train_step(rows.batch, step=step)
                named = {f"train/{name}": value for name, value in learned.items()}
                folder.log(step, named | dict(rows.metrics) | _times(timers))
            if config.train.export:
                await trainer.export(folder.policy)
        folder.finish(before=None, after=None, timers=timers)
        return TrainResult(folder.path, folder.policy if config.train.export else None, None, None)


def _rows(config: Config, groups: list[ScoredGroup], step: int) -> StepRows:
    return build_train_batch(
        groups,
        config.hindsight,
        config.algorithm,
        prompts_per_optimizer_step=config.train.prompts_per_optimizer_step,
        run_seed=config.run.seed,
        step=step,
    )


def _times(timers: Timers) -> dict[str, float]:
    return {f"time/{phase}_s": seconds for phase, seconds in timers.lap().items()}


def _require_same(ours: dict[str, str], kept: dict[str, str], file: Path) -> None:
    """ValueError where groups were drawn with another tokenizer than the trainer's model has."""
    name = "tokenizer of model.path"
    if kept.get(name, ours[name]) != ours[name]:
        raise ValueError(
            f"{file} was drawn with another tokenizer than {name} has: its token ids mean other"
            " words; take the model of that run, or one trained from it"
        )
