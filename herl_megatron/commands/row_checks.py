"""What can be wrong with a row's keys, looked at before its first stage: the configuration of every
stage, though the files that it will read are not made yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herl_megatron.config.hub import cached_model, is_hub_name
from herl_megatron.config.load import ConfigError, known_keys, load_config, split_arguments
from herl_megatron.config.loop_keys import samples
from herl_megatron.config.machine import Machine, look_at_machine
from herl_megatron.config.purpose import SECTIONS, TUNES, Purpose, only_evaluates, uses
from herl_megatron.config.reference_compat import REFERENCE_VALUES, effective_config
from herl_megatron.config.rules.data import read_shape
from herl_megatron.config.schema import Config
from herl_megatron.config.secrets import shown_path, without_secrets
from herl_megatron.config.validate import early_problems, machine_problems, shape_problems
from herl_megatron.prepared import method_problems
from herl_megatron.reproduce.paper_rows import PaperRow
from herl_megatron.reproduce.stage import ChainOptions, Stage

_TRAINS_NOTHING = (
    "trains nothing, so it reads no KEY=VALUE; keys of its evaluations are --eval KEY=VALUE"
)

_READ_WHILE_OFF = {"enabled", "reference_compat", *REFERENCE_VALUES, "temperature", "top_p"}
"""Keys of `hindsight` that are compared with one another though it is off."""


@dataclass(frozen=True)
class StageConfig:
    """A stage that runs a configuration, what it comes to, and the command that runs it."""

    stage: Stage
    config: Config
    purpose: Purpose


def require_sound(
    row: PaperRow, stages: Sequence[Stage], asked: ChainOptions, *, here: Sequence[Stage]
) -> None:
    """Refuse keys that no stage of the row reads, and stages whose configuration cannot run.

    here: those that are to run on this machine; of the others it is taken to be one with the GPUs
    that they ask for. Not looked at: what an earlier stage makes, and stages that are done.

    Raises:
        ConfigError: all problems found, each with its stages.
    """
    configs, unreadable = load_stages(stages)
    if unreadable:
        raise ConfigError(unreadable)
    problems = list(_idle_evaluation(row, configs, asked))
    if row.task:
        problems += _idle(row, configs, asked.overrides, stages)
    else:
        problems += [f"{_said(text)}: {row.name} {_TRAINS_NOTHING}" for text in asked.overrides]
    shape = _shape(configs, asked)
    problems += _said_once(
        (one.stage.name, problem)
        for one in configs
        if not one.stage.is_done()
        for problem in _problems(one, shape, here=one.stage in here)
    )
    if problems:
        raise ConfigError(problems)


def load_stages(stages: Sequence[Stage]) -> tuple[list[StageConfig], list[str]]:
    """The configurations, as the stages' own commands would read them, and what cannot be read."""
    found, problems = [], []
    for stage in stages:
        command = stage.argv[0]
        purpose: Purpose | None = next((name for name in SECTIONS if name == command), None)
        if purpose is None:
            continue
        try:
            config = load_config(*split_arguments(stage.argv[1:]))
            found.append(StageConfig(stage, effective_config(config, purpose=purpose), purpose))
        except ConfigError as error:
            problems += [(stage.name, problem) for problem in error.problems]
        except ValueError as error:
            problems.append((stage.name, str(error)))
    return found, _said_once(problems)


def _said_once(found: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> list[str]:
    """Each problem with the names of all its stages."""
    names: dict[str, list[str]] = {}
    for name, problem in found:
        names.setdefault(problem, []).append(name)
    return [f"{', '.join(dict.fromkeys(where))}: {problem}" for problem, where in names.items()]


def _problems(one: StageConfig, shape: Mapping[str, Any], *, here: bool) -> Iterator[str]:
    config, purpose = one.config, one.purpose
    machine = look_at_machine(config) if here else _fitting(config)
    yield from early_problems(config, purpose=purpose, machine=machine)
    yield from method_problems(config, purpose)
    if here:
        yield from machine_problems(config, purpose=purpose, machine=machine)
    if shape:
        device = machine.device(config.cluster.device)
        yield from shape_problems(config, shape, purpose=purpose, device=device)


def _fitting(config: Config) -> Machine:
    """A machine with what the configuration asks for."""
    if config.cluster.device == "cpu":
        return Machine()
    engines = config.rollout.replicas * config.rollout.tensor_parallel
    return Machine(gpus=max(config.megatron.world_size, engines), transformer_engine=True)


def _shape(configs: Sequence[StageConfig], asked: ChainOptions) -> Mapping[str, Any]:
    """The `config.json` of the model that the row starts from, which the trained one shares; empty
    where nobody has it yet."""
    path = configs[0].config.model.path
    cached = cached_model(path, weights=False) if is_hub_name(path) else None
    folder = cached.folder if cached else Path(path)
    for file in (folder / "config.json", asked.configs / f"shapes/{Path(path).name}.json"):
        if file.is_file():
            try:
                return read_shape(file)
            except ValueError as error:
                raise ConfigError([f"model {path}: {error}"]) from error
    return {}


def _idle(
    row: PaperRow, configs: Sequence[StageConfig], texts: Sequence[str], stages: Sequence[Stage]
) -> Iterator[str]:
    """Overrides of the row that nothing in it looks at."""
    asks_for_rows = any("--judge" in stage.argv for stage in stages)
    for text in texts:
        key = text.partition("=")[0]
        readers = [one for one in configs if text in one.stage.argv and _reads(one, key)]
        if readers or (asks_for_rows and key.startswith("judge.")):
            continue
        (train,) = [one for one in configs if one.stage.name == "train"]
        yield f"{_said(text)}: does nothing for {row.name}{_why(train, key)}"


def _said(text: str) -> str:
    """An override as a message repeats it: under a key that nobody knows anything may be secret."""
    key = text.partition("=")[0]
    return without_secrets(text) if key in set(known_keys()) else shown_path(key.split("."))


def _why(one: StageConfig, key: str) -> str:
    section, _, name = key.partition(".")
    meant = f"{one.purpose}.{name}"
    hint = f"; did you mean {meant}?" if meant in set(known_keys()) and meant != key else ""
    if section not in SECTIONS[one.purpose]:
        listed = ", ".join(sorted(SECTIONS[one.purpose]))
        return f", whose `herl {one.purpose}` reads the sections {listed}{hint}"
    silent = one.purpose in TUNES and not samples(one.config, purpose=one.purpose)
    if silent and only_evaluates(one.purpose, key):
        return (
            f", whose `herl {one.purpose}` samples nothing: {one.purpose}.eval_every is 0; keys of"
            " its evaluations are --eval KEY=VALUE"
        )
    if section == "hindsight":
        return ": hindsight.enabled is false"
    return f": `herl {one.purpose}` has no use for it{hint}"


def _reads(one: StageConfig, key: str) -> bool:
    """Whether the key can make a difference to the stage."""
    if not uses(one.purpose, key):
        return False
    if one.purpose == "train" and key.startswith("hindsight."):
        return one.config.hindsight.enabled or key.partition(".")[2] in _READ_WHILE_OFF
    return samples(one.config, purpose=one.purpose) or not only_evaluates(one.purpose, key)


def _idle_evaluation(
    row: PaperRow, configs: Sequence[StageConfig], asked: ChainOptions
) -> Iterator[str]:
    """Keys of `--eval` that none of the evaluations looks at."""
    evaluations = [one for one in configs if one.stage.name.startswith("eval_")]
    for text in asked.evaluation:
        key = text.partition("=")[0]
        if any(text in one.stage.argv and _reads(one, key) for one in evaluations):
            continue
        read = ", ".join(sorted(SECTIONS["eval"]))
        why = "no judge is asked" if key.startswith("judge.") else f"`herl eval` reads of {read}"
        yield f"--eval {_said(text)}: does nothing for the evaluations of {row.name}; {why}"
