"""`prepare`: from files and overrides to the one configuration that a command takes."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import PrivateAttr

from herl_megatron.config.hub import (
    HubModel,
    cached_model,
    fetch_model,
    lies_in,
    looked_up,
    recorded,
)
from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.paths import run_path
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.reference_compat import effective_config
from herl_megatron.config.rules.scoring import judge_problems
from herl_megatron.config.schema import Config
from herl_megatron.data.chat_template import reads_date
from herl_megatron.data.epochs import in_steps

Command = Literal["train", "sft", "dpo", "eval", "improve", "score"]
"""What a configuration can be prepared for: `herl COMMAND`."""
_FUNCTIONS: Mapping[Command, str] = {"eval": "evaluate"}
"""Functions of `herl_megatron` that are not called like their command."""


class PreparedConfig(Config):
    """A configuration that `prepare` gave: resolved, and checked for one command on this machine.

    It equals any `Config` of the same values. `model_copy` with changes gives one that is prepared
    for nothing, since nobody checked the changes; a plain copy and a pickled one stay prepared.
    """

    _command: Command | None = PrivateAttr(default=None)
    _values: str = PrivateAttr(default="")

    @classmethod
    def of(cls, config: Config, command: Command) -> Self:
        """`config`, marked as prepared for `command`; for `check` alone."""
        prepared = cls.model_construct(_fields_set=config.model_fields_set, **config.__dict__)
        prepared._command = command
        prepared._values = prepared.model_dump_json()
        return prepared

    @property
    def command(self) -> Command | None:
        """What it was prepared for; None once it was changed, be it a mapping within it."""
        return self._command if self.model_dump_json() == self._values else None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of any model; with `update` the copy is prepared for nothing."""
        copied = super().model_copy(update=update, deep=deep)
        if update:
            copied._command = None
        return copied

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.__dict__ == other.__dict__

    __hash__ = Config.__hash__


def prepare(
    files: str | Path | Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    command: Command = "train",
) -> PreparedConfig:
    """Read YAML files, which merge left to right, and overrides such as `train.steps=10`; resolve
    what stands for other keys (`hindsight.reference_compat`), for a folder (a model's name on the
    Hugging Face Hub), for a day (`data.template_date`) or for steps (`train.epochs`, by the number
    of rows), and check every key: alone, with the
    others, with the model's config.json and with this machine. What is in files of rows, prompts
    and own code is looked at when the command begins, before it starts a process; a hindsight
    method and a rollout function of one's own are asked here already. Starts no process and writes
    nothing but a model that has to be fetched, into the cache of Hugging Face.

    files: may be empty where the overrides say enough, as for `score`.

    Raises:
        ConfigError: all problems found, each with key, value and what to do.
        ValueError: keys that contradict `hindsight.reference_compat`.
    """
    return check(load_config(files, overrides), command=command)


def check(config: Config, *, command: Command, fetch: bool = True) -> PreparedConfig:
    """The second half of `prepare`, for a configuration that was loaded; raises as it does.

    fetch: whether a model that is named as on the Hub and not in the cache may be fetched; else it
        is a problem.
    """
    if command not in get_args(Command):
        meant = {function: name for name, function in _FUNCTIONS.items()}.get(command)
        what = f"did you mean {meant!r}?" if meant else f"it is one of {get_args(Command)}"
        raise ValueError(f"there is no command {command!r} to prepare for; {what}")
    if command == "score":  # asks for no model, run folder or device
        if problems := list(judge_problems(config.judge)):
            raise ConfigError(problems)
        return PreparedConfig.of(config, command)
    from herl_megatron.config.validate import validate  # imports torch, to see the machine

    resolved = effective_config(config, purpose=command)
    run = run_path(config) if config.run.resume else None
    if name := looked_up(config.model, run):
        weights = not (config.model.random_init or config.model.megatron_path)
        found = cached_model(name, weights=weights)
        if found is None:
            validate(  # before anything is fetched
                resolved,
                purpose=command,
                model_is_there=False,
                further=method_problems(resolved, command),
            )
            found = _fetched(name, weights=weights, fetch=fetch)
        resolved = _with_model(resolved, path=str(found.folder), hub=found.pinned)
    elif config.model.hub and not lies_in(config.model):
        resolved = _with_model(resolved, path=config.model.path, hub="")
    validate(resolved, purpose=command, further=method_problems(resolved, command))
    return PreparedConfig.of(_in_steps(_dated(resolved, run), command), command)


def method_problems(config: Config, command: Command) -> list[str]:
    """What the hindsight method itself finds wrong, where the command trains with one."""
    hindsight = config.hindsight
    if command != "train" or not hindsight.enabled:
        return []
    from herl_megatron.hindsight import known_methods  # a method from outside may import anything

    try:
        method = known_methods.open_method(hindsight)
        assert method is not None, "hindsight is on"
        problems = known_methods.problems_of(method, hindsight, config.rollout)
    except ValueError as error:
        return [str(error)]
    if hindsight.reference_compat and "reference_compat" not in method.keys:
        problems.append(
            f"hindsight.method is {hindsight.method!r} with hindsight.reference_compat true, which"
            " is HeRL's released code and samples revisions; turn one of them off"
        )
    if config.scoring.group_reward and method.gives_rewards:
        problems.append(
            f"scoring.group_reward is {config.scoring.group_reward!r} with hindsight.method"
            f" {hindsight.method!r}, whose own rewards are in the rubric's scale and do not compare"
            " with that function's; use method 'revise', or take one of them out"
        )
    return problems


def _in_steps(config: Config, command: Purpose) -> Config:
    try:
        return in_steps(config, command)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _dated(config: Config, run: Path | None) -> Config:
    """With the day that the model's chat template shows, if it shows one: that of the run which is
    resumed, else today's."""
    if config.data.template_date or not reads_date(config.model.path):
        return config
    begun = None if run is None else recorded(run, "data")
    day = datetime.date.today().isoformat() if begun is None else begun.get("template_date") or ""
    data = config.data.model_copy(update={"template_date": str(day)})
    return config.model_copy(update={"data": data})


def _fetched(name: str, *, weights: bool, fetch: bool) -> HubModel:
    if not fetch:
        raise ConfigError(
            [
                f"model.path: {name!r} is no folder here and not in the cache of Hugging Face; a"
                f" run would fetch it, as `hf download {name.replace('@', ' --revision ')}` does"
            ]
        )
    try:
        return fetch_model(name, key="model.path", weights=weights)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _with_model(config: Config, *, path: str, hub: str) -> Config:
    model = config.model.model_copy(update={"path": path, "hub": hub})
    return config.model_copy(update={"model": model})


def require_prepared(config: Config, command: Command) -> None:
    """Refuse what `prepare` did not give for this command.

    Raises:
        ValueError: with what it is instead and the call that mends it.
    """
    name = _FUNCTIONS.get(command, command)
    fix = f"{name} takes what prepare(files, overrides, command={command!r}) returns"
    if not isinstance(config, PreparedConfig):
        raise ValueError(f"this {type(config).__name__} was not prepared: {fix}")
    if config.command is None:
        raise ValueError(
            f"this configuration was changed after prepare: {fix}; give changes as overrides"
        )
    if config.command != command:
        raise ValueError(f"this configuration was prepared for {config.command!r}: {fix}")
