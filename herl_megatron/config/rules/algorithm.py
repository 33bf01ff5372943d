"""Rules of sections `algorithm` and `optimizer`."""

from __future__ import annotations

from collections.abc import Iterator

from herl_megatron.config.hooks import is_hook, name_problem
from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import TRAINS, Purpose
from herl_megatron.config.schema import Config


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    if purpose in TRAINS and config.optimizer.min_lr > config.optimizer.lr:
        yield (
            f"optimizer.min_lr is {config.optimizer.min_lr}, above optimizer.lr"
            f" {config.optimizer.lr}; lower it"
        )
    if purpose == "train":
        yield from _own_functions(config)
        yield from _blocks(config)
        yield from _groups(config)
        yield from _truncated(config)
        yield from _staleness(config)


def _own_functions(config: Config) -> Iterator[str]:
    """Names alone: the functions are imported with the run's other inputs."""
    algorithm = config.algorithm
    for key, name, ours, options in (
        ("algorithm.loss", algorithm.loss, "clip", algorithm.loss_options),
        ("algorithm.advantage", algorithm.advantage, "group_relative", algorithm.advantage_options),
    ):
        if is_hook(name):
            if problem := name_problem(name):
                yield f"{key} is {name!r}, which {problem}"
        elif name != ours:
            yield (
                f"{key} is {name!r}, which herl does not have; use {ours!r}, or name a function of"
                " your own as module:function"
            )
        elif options:
            yield (
                f"{key}_options is {options}, but {key} {ours!r} takes none; remove it, or name a"
                " function of your own"
            )
    if config.hindsight.off_policy_loss == "own" and not is_hook(algorithm.loss):
        yield (
            f"hindsight.off_policy_loss is 'own' but algorithm.loss is {algorithm.loss!r}, which is"
            " no function of your own; name one as module:function, or use 'shaped' or 'clip'"
        )


def _blocks(config: Config) -> Iterator[str]:
    """One key without the other says nothing."""
    aggregation, rows = config.algorithm.aggregation, config.algorithm.block_rows
    if aggregation == "block_token_mean" and rows is None:
        yield (
            "algorithm.aggregation is 'block_token_mean' but algorithm.block_rows is null; set how"
            " many rows a block has (16 in the released scripts)"
        )
    elif aggregation != "block_token_mean" and rows is not None:
        yield (
            f"algorithm.block_rows is {rows} but algorithm.aggregation is {aggregation!r}, which"
            " has no blocks; set block_rows to null, or aggregation to 'block_token_mean'"
        )


def _groups(config: Config) -> Iterator[str]:
    group = config.rollout.group_size
    if config.algorithm.min_valid > group:
        yield (
            f"algorithm.min_valid is {config.algorithm.min_valid}, above rollout.group_size"
            f" {group}; no group would ever train"
        )


def _truncated(config: Config) -> Iterator[str]:
    if config.algorithm.mismatch_weight and config.rollout.truncated:
        yield (
            f"algorithm.mismatch_weight is true but {config.rollout.truncated}: the engine's"
            " log-probs are of the truncated distribution and do not compare with the trainer's;"
            " use top_p 1.0 and top_k -1, or turn mismatch_weight off"
        )


def _staleness(config: Config) -> Iterator[str]:
    """What a loss must know about tokens that the step's first weights did not draw."""
    mode, quantization = config.rollout.mode, config.rollout.quantization
    if quantization and not config.algorithm.mismatch_weight:
        yield (
            f"rollout.quantization is {quantization!r} but algorithm.mismatch_weight is false: the"
            " loss would take tokens that rounded weights drew for the policy's own; set"
            " mismatch_weight to true, or quantization to null"
        )
    if mode == "sync":
        return
    if not config.algorithm.mismatch_weight:
        yield (
            f"rollout.mode is {mode!r} but algorithm.mismatch_weight is false: the loss would take"
            " tokens that older weights drew for the current policy's; set mismatch_weight to true"
            " (decoupled PPO), or mode to 'sync'"
        )
