"""Rules of section `hindsight`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config

_METHODS = "herl_megatron.hindsight.known_methods"
"""A method says itself what is wrong between its keys. It is asked by name, as one from outside,
because methods are built on this room."""


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    hindsight = config.hindsight
    if purpose != "train" or not hindsight.enabled:
        return
    yield from _stale_revisions(config)
    try:
        method = import_module(_METHODS).open_method(hindsight)
    except ValueError as error:
        yield str(error)
        return
    if hindsight.reference_compat and "reference_compat" not in method.keys:
        yield (
            f"hindsight.method is {hindsight.method!r} with hindsight.reference_compat true, which"
            " is HeRL's released code and samples revisions; turn one of them off"
        )
    yield from method.problems(config.rollout)


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
