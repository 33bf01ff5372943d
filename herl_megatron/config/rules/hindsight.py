"""Rules of section `hindsight`."""

from __future__ import annotations

from collections.abc import Iterator

from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    hindsight = config.hindsight
    if purpose != "train" or not hindsight.enabled:
        return
    yield from _stale_revisions(config)
    if hindsight.replace != "append" and hindsight.replace_top_n > config.rollout.group_size:
        yield (
            f"hindsight.replace_top_n is {hindsight.replace_top_n}, above rollout.group_size"
            f" {config.rollout.group_size}; lower it or use hindsight.replace=append"
        )
    if hindsight.method == "replay":
        yield from _replay(config)
        return
    if hindsight.temperature == 0 and not hindsight.reference_compat:
        if hindsight.behavior == "sampler":
            yield (
                "hindsight.temperature is 0 with hindsight.behavior 'sampler': a greedy sampler"
                " has no token probabilities; raise the temperature, or use behavior 'old' or 'one'"
            )
        if hindsight.revisions_per_experience > 1:
            yield (
                "hindsight.temperature is 0 with hindsight.revisions_per_experience"
                f" {hindsight.revisions_per_experience}: they would be equal; use 1"
            )


def _replay(config: Config) -> Iterator[str]:
    hindsight = config.hindsight
    if hindsight.reference_compat:
        yield (
            "hindsight.method is 'replay' with hindsight.reference_compat true, which is HeRL's"
            " released code and samples revisions; turn one of them off"
        )
    if hindsight.behavior == "sampler" and config.rollout.temperature == 0:
        yield (
            "hindsight.method is 'replay' with rollout.temperature 0: a greedy sampler has no token"
            " probabilities; raise it"
        )


def _stale_revisions(config: Config) -> Iterator[str]:
    """A revision that older weights drew must know its own log-probs."""
    mode, hindsight = config.rollout.mode, config.hindsight
    if mode == "sync":
        return
    if hindsight.reference_compat or hindsight.behavior == "old":
        key = "reference_compat true" if hindsight.reference_compat else "behavior 'old'"
        yield (
            f"rollout.mode is {mode!r} with hindsight.{key}, which takes revisions to be drawn by"
            " the step's first weights; use behavior 'sampler', or mode 'sync'"
        )
