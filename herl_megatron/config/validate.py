"""All rules of the configuration, checked before any process starts; `config.rules` holds them.

All problems of a run are reported together, each with the keys, their values and the fix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from herl_megatron.config.load import ConfigError
from herl_megatron.config.loop_keys import samples
from herl_megatron.config.machine import Machine, look_at_machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.rules import (
    algorithm,
    data,
    evaluation,
    hindsight,
    loops,
    megatron,
    rollout,
    run,
    scoring,
    state,
    tracking,
)
from herl_megatron.config.schema import Config
from herl_megatron.config.shape import size_problems
from herl_megatron.files.os_errors import absent

_OF_KEYS = (run, rollout, megatron, loops, algorithm, hindsight, evaluation, scoring)
_OF_SHAPE = (megatron, loops, rollout)


def validate(
    config: Config,
    *,
    purpose: Purpose,
    machine: Machine | None = None,
    model_is_there: bool = True,
    further: Sequence[str] = (),
) -> None:
    """Refuse a configuration that cannot run; `machine` defaults to the facts of this one.

    model_is_there: whether the model's folder is looked at; not before it was fetched.
    further: problems that rooms above this one have found, to be said with the others.

    Raises:
        ConfigError: all problems found.
    """
    machine = machine or look_at_machine(config)
    problems = list(_problems(config, purpose, machine, model_is_there=model_is_there))
    problems += further
    if problems:
        raise ConfigError(problems)


def rule_problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """The rules that need no file: between keys, and between keys and the machine."""
    for section in _OF_KEYS:
        yield from section.problems(config, purpose=purpose, machine=machine)


def early_problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """What is wrong whatever the files hold that the run reads: for who looks before they are made,
    or on another machine."""
    if samples(config, purpose=purpose):
        yield from scoring.judge_problems(config.judge, files=False)
    yield from rule_problems(config, purpose=purpose, machine=machine)


def machine_problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """What this machine lacks besides, but for the run's folder, its rows and its model."""
    yield from hindsight.file_problems(config, purpose)
    yield from tracking.start_problems(config.tracking)
    yield from state.shared_memory_problems(config, purpose=purpose, machine=machine)


def shape_problems(
    config: Config, shape: Mapping[str, Any], *, purpose: Purpose, device: Literal["cpu", "cuda"]
) -> Iterator[str]:
    """What is wrong between the run and a model's `config.json`, wherever that lies."""
    if unsupported := list(data.family_problems(shape)):
        yield from unsupported
        return
    if impossible := list(size_problems(shape)):
        yield from (f"model.path: config.json: {problem}" for problem in impossible)
        return
    for section in _OF_SHAPE:
        yield from section.shape_problems(config, shape, purpose=purpose, device=device)


def _problems(
    config: Config, purpose: Purpose, machine: Machine, *, model_is_there: bool
) -> Iterator[str]:
    yield from run.start_problems(config, purpose)
    yield from data.file_problems(config, purpose)
    if samples(config, purpose=purpose):
        yield from scoring.judge_problems(config.judge)
    if model_is_there:
        yield from _model_problems(config, purpose, machine)
    yield from rule_problems(config, purpose=purpose, machine=machine)
    yield from machine_problems(config, purpose=purpose, machine=machine)


def _model_problems(config: Config, purpose: Purpose, machine: Machine) -> Iterator[str]:
    folder = Path(config.model.path)
    yield from data.folder_problems(config, purpose)
    if not config.model.path or absent(folder, "folder"):
        return
    try:
        shape = data.read_shape(folder / "config.json")
    except ValueError as error:
        yield f"model.path: {error}"
        return
    device = machine.device(config.cluster.device)
    yield from shape_problems(config, shape, purpose=purpose, device=device)
