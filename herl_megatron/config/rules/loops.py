"""Rules of sections `train`, `sft` and `dpo`: what each command does in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import TUNES, Purpose
from herl_megatron.config.schema import Config


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    yield from _length(config, purpose)
    if purpose == "train":
        yield from _train_batches(config)
        yield from _loop(config)
        yield from _half(config)
    if purpose == "sft":
        yield from _rows(config)
    if purpose == "dpo":
        yield from _pairs(config)
    if purpose in TUNES:
        yield from _held_out(config, purpose)


def _length(config: Config, purpose: Purpose) -> Iterator[str]:
    """One of steps and epochs, of a command that has them."""
    lengths = {"train": config.train, "sft": config.sft, "dpo": config.dpo}
    if (loop := lengths.get(purpose)) is None:
        return
    if loop.steps is not None and loop.epochs is not None:
        yield (
            f"{purpose}.steps is {loop.steps} and {purpose}.epochs is {loop.epochs:g}, and both say"
            f" how long: leave one out, or set {purpose}.epochs=null to have the steps,"
            f" {purpose}.steps=null to have the epochs"
        )
    if loop.steps is None and loop.epochs is None:
        yield f"neither {purpose}.steps nor {purpose}.epochs says how long; give one of them"


def _train_batches(config: Config) -> Iterator[str]:
    dp = config.megatron.data_parallel
    train, group = config.train, config.rollout.group_size
    if train.prompts_per_step % train.prompts_per_optimizer_step:
        yield (
            f"train.prompts_per_step {train.prompts_per_step} is not divisible by"
            f" train.prompts_per_optimizer_step {train.prompts_per_optimizer_step}"
        )
    rows = train.prompts_per_optimizer_step * group
    if rows < dp:
        yield (
            f"train.prompts_per_optimizer_step {train.prompts_per_optimizer_step} *"
            f" rollout.group_size {group} = {rows} rows, fewer than megatron.data_parallel {dp};"
            " every rank needs a row"
        )


def _loop(config: Config) -> Iterator[str]:
    train, data = config.train, config.data
    if train.steps == 0 and not data.eval and not train.export:
        yield "train.steps is 0, data.eval is empty and train.export is false: nothing to do"
    if train.eval_every and not data.eval and not train.only:  # half of the loop evaluates never
        yield (
            f"train.eval_every is {train.eval_every} but data.eval is empty; give held-out rows or"
            " set eval_every to 0"
        )


def _half(config: Config) -> Iterator[str]:
    train = config.train
    if train.groups_from and train.only != "learning":
        yield (
            f"train.groups_from is {train.groups_from!r} but train.only is {train.only!r}; only"
            " train.only=learning reads it"
        )
    if train.only and config.run.resume:
        yield f"train.only is {train.only!r}, which cannot be resumed; set run.resume=false"
    if train.only and train.steps == 0:
        yield f"train.only is {train.only!r} and train.steps is 0: nothing to do; give steps"
    if train.only == "learning" and not train.groups_from:
        yield (
            "train.only is 'learning' and train.groups_from is empty; name a run that was made with"
            " train.keep_groups=true"
        )
    if train.only == "rollouts" and config.model.megatron_path:
        yield (
            f"train.only is 'rollouts', whose engines read model.path, but model.megatron_path is"
            f" {config.model.megatron_path!r}: `herl convert to-hf` makes a folder of it"
        )


def _rows(config: Config) -> Iterator[str]:
    dp = config.megatron.data_parallel
    if config.sft.rows_per_step < dp:
        yield (
            f"sft.rows_per_step is {config.sft.rows_per_step}, fewer than"
            f" megatron.data_parallel {dp}; every rank needs a row"
        )


def _pairs(config: Config) -> Iterator[str]:
    dpo, dp = config.dpo, config.megatron.data_parallel
    if 2 * dpo.pairs_per_step < dp:
        yield (
            f"dpo.pairs_per_step is {dpo.pairs_per_step}, two rows each, fewer than"
            f" megatron.data_parallel {dp}; every rank needs a row"
        )
    if dpo.loss == "ipo" and dpo.label_smoothing:
        yield (
            f"dpo.label_smoothing is {dpo.label_smoothing} with dpo.loss 'ipo', which has none; set"
            " it to 0 or use 'sigmoid'"
        )


def _held_out(config: Config, purpose: Purpose) -> Iterator[str]:
    every = config.sft.eval_every if purpose == "sft" else config.dpo.eval_every
    if every and not config.data.eval:
        yield (
            f"{purpose}.eval_every is {every} but data.eval is empty; give held-out rows or set"
            " eval_every to 0"
        )


def shape_problems(
    config: Config, shape: Mapping[str, Any], *, purpose: Purpose, device: Literal["cpu", "cuda"]
) -> Iterator[str]:
    """Rows that are only trained on end where the model's positions do."""
    if purpose not in TUNES:
        return
    longest = config.sft.max_tokens if purpose == "sft" else config.dpo.max_tokens
    positions = shape.get("max_position_embeddings")
    if positions and longest > positions:
        yield (
            f"{purpose}.max_tokens is {longest}, but the model's max_position_embeddings is"
            f" {positions}; lower it"
        )
