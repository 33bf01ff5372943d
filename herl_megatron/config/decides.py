"""What each key decides, as its type in the schema says (`config.schema.base.Decides`).

Everything that has to know which keys two runs must share takes it from here: what a resume
refuses (`run.checkpoints`, `improvement.trajectory_log`), what scores depend on
(`commands.score.job`), and the page docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from herl_megatron.config.purpose import Purpose, only_evaluates, reads
from herl_megatron.config.schema import Config
from herl_megatron.config.schema.base import BY_CONTENT, Decides

_DEFAULTS = Config()


@dataclass(frozen=True)
class Key:
    """One key: its dotted path, what it decides, and whether that is what a file holds."""

    path: str
    decides: Decides
    by_content: bool


def keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[Key]:
    """Every key, in the schema's order; ValueError for one that does not say what it decides."""
    for name, info in model.model_fields.items():
        path = prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys(info.annotation, f"{path}.")
            continue
        said = [mark for mark in info.metadata if isinstance(mark, Decides)]
        if len(said) != 1:
            raise ValueError(f"{path} must say once what it decides, as in `Numbers[int]`")
        yield Key(path, said[0], BY_CONTENT in info.metadata)


def keys_that_decide(*kinds: Decides, purpose: Purpose) -> list[Key]:
    """The keys that `herl PURPOSE` reads which decide one of `kinds`, for that command: what would
    be numbers or verdicts and is asked by evaluations alone decides the evaluation."""
    read = (key for key in keys() if reads(purpose, key.path))
    return [key for key in read if _for(purpose, key) in kinds]


def _for(purpose: Purpose, key: Key) -> Decides:
    results = key.decides in (Decides.NUMBERS, Decides.VERDICTS)
    return Decides.EVALUATION if results and only_evaluates(purpose, key.path) else key.decides


def differences(
    earlier: Mapping[str, Any],
    now: Config,
    *kinds: Decides,
    purpose: Purpose,
    leave_out: Collection[str] = (),
    by_path: bool = False,
) -> Iterator[tuple[str, Any, Any]]:
    """(path, value now, value then) of the keys that decide one of `kinds` and were changed.

    earlier: a configuration as JSON values; a key that it does not have is new since, and was what
        its default is.
    by_path: compare paths to files that decide by their content too. Without, only whether there is
        one: what they hold is for `data.fingerprints`.
    """
    values, defaults = now.model_dump(mode="json"), _DEFAULTS.model_dump(mode="json")
    for key in keys_that_decide(*kinds, purpose=purpose):
        section, _, name = key.path.partition(".")
        value = values[section][name]
        then = earlier.get(section, {}).get(name, defaults[section][name])
        if key.path in leave_out or then == value:
            continue
        if key.by_content and value and then:
            if not by_path or _resolved(value) == _resolved(then):
                continue
        yield key.path, value, then


def _resolved(value: str | list[str]) -> list[Path]:
    """The places of a path, or of a list of them."""
    return [Path(path).resolve() for path in ([value] if isinstance(value, str) else value)]
