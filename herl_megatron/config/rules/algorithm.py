"""Rules of sections `algorithm` and `optimizer`."""

from __future__ import annotations

from collections.abc import Iterator

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
        yield from _groups(config)
        yield from _truncated(config)
        yield from _staleness(config)


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
