"""YAML plus dotted overrides into a `Config`, and a `Config` back into YAML.

Every problem found is reported at once, each with the key's path, its value and what to do.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._yaml import get_yaml_loader
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import (
    GrammarParseError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from herl_megatron.config import history
from herl_megatron.config.alternatives import taking_back
from herl_megatron.config.rules.scoring import unwritable_problems
from herl_megatron.config.schema import Config
from herl_megatron.config.secrets import (
    shown,
    shown_file,
    shown_override,
    shown_path,
    without_secrets,
)
from herl_megatron.config.type_names import type_name
from herl_megatron.config.upgrade import (
    FIRST,
    VERSION,
    pending_keys,
    pending_takeovers,
    said,
    upgraded,
    version_problem,
)
from herl_megatron.config.yaml_traps import ENVIRONMENT, traps_in_file, traps_in_overrides
from herl_megatron.files.run_files import looks_like_a_run

_CREDENTIAL = re.compile(r"(api_?key|secret|password|passwd|authorization|bearer)$", re.IGNORECASE)
"""Names of unknown keys that are credentials and nothing else."""

NO_FILE = "no configuration file is named; give one or more, see configs/"
_NAMES_SHOWN = 24
"""Of the files beside one that is not there."""
_EXTENDS = "extends"
_UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError)
"""What reading raises: `!!int x` is a plain ValueError. Raised on without its cause, which may
hold a credential in its text."""
_INSIDE = {
    "oc.coerce", "oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values",
    "oc.select",
}  # fmt: skip
"""Resolvers that look at nothing but the configuration."""


class ConfigError(ValueError):
    """What is wrong with a configuration, one line per problem."""

    def __init__(self, problems: Sequence[str], *, source: str = "") -> None:
        self.problems = tuple(problems)
        where = f" in {source}" if source else ""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"configuration: {count}{where}\n{lines}")


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files and overrides of a command line, whatever their order; what holds `=` and is no file is
    an override.

    Raises:
        ConfigError: no file is named.
    """
    files = [Path(text) for text in arguments if "=" not in text or _is_file(Path(text))]
    if not files:
        raise ConfigError([NO_FILE])
    return files, [text for text in arguments if "=" in text and not _is_file(Path(text))]


@contextmanager
def _nothing_from_outside() -> Iterator[None]:
    """No interpolation reads the environment, however its name is put together, or runs a resolver
    that somebody registered: what it gives would be written into a run's config.yaml."""
    saved = dict(BaseContainer._resolvers)
    for name in saved.keys() - _INSIDE:
        del BaseContainer._resolvers[name]
    try:
        yield
    finally:
        BaseContainer._resolvers.clear()
        BaseContainer._resolvers.update(saved)


@_nothing_from_outside()
def load_config(paths: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Read YAML files, which merge left to right, apply overrides such as `train.steps=10` and
    check every value's type.

    A file may begin with `extends: [FILE, ...]`, files beside it that it changes. Several files
    that give the run no name name it together: `models/qwen3_4b.yaml tasks/if.yaml` is
    `qwen3_4b_if`. A later `steps` ends an earlier `epochs`, and the other way (`alternatives`).

    Raises:
        ConfigError: no such file, bad YAML, a key given twice, an unknown key (the nearest known
            one is named), one that was renamed or removed, a value of the wrong type or out of
            range, or what may be a credential.
    """
    is_list = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not is_list or not all(isinstance(text, str) for text in overrides):
        raise ConfigError(["overrides must be a list of texts, such as ['train.steps=10']"])
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files = [file for path in given for file in _read_file(Path(path))]
    if len(given) > 1 and not any(OmegaConf.select(file, "run.name") for _, file in files):
        name = "_".join(Path(path).stem for path in given)
        files.append((Path(), OmegaConf.create({"run": {"name": name}})))
    source = ", ".join(map(str, given))
    try:
        parts = [*files, (Path("the overrides"), read_overrides(overrides))]
        merged = OmegaConf.merge(*(taking_back(values) for _, values in parts))
        # Through JSON because strict mode then still takes a list for a tuple.
        text = json.dumps(OmegaConf.to_container(merged, resolve=True), default=str)
    except ConfigError:
        raise
    except _UNREADABLE as error:
        raise ConfigError([_unreadable(error)], source=source) from None
    return _checked(text, source, parts)


@_nothing_from_outside()
def load_saved(path: Path) -> Config:
    """The `config.yaml` of a run of this version or an earlier one, as that run meant it.

    Raises:
        ConfigError: as in `load_config`.
    """
    values = _read_yaml(path)
    version = _take_version(path, values)
    try:
        text = json.dumps(upgraded(_plain(values, resolve=True), version), default=str)
    except _UNREADABLE as error:
        raise ConfigError([_unreadable(error)], source=str(path)) from None
    return _checked(text, str(path), [])


def _checked(text: str, source: str, parts: Sequence[tuple[Path, DictConfig]]) -> Config:
    """The configuration of a JSON text; parts: the files and overrides that it came from."""
    try:
        config = Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        several = len(parts) > 2
        found = [_describe(e) + (_origin(e, parts) if several else "") for e in error.errors()]
        raise ConfigError(found, source=source) from None
    if problems := list(unwritable_problems(config)):
        raise ConfigError(problems, source=source)
    return config


def read_overrides(overrides: Sequence[str]) -> DictConfig:
    """Overrides as nested values, their types not looked at.

    Raises:
        ConfigError: one cannot be read, or names what a file alone may say.
    """
    if problems := _override_problems(overrides):
        raise ConfigError(problems)
    values = OmegaConf.create({})
    for override in overrides:
        # `key=` means empty text, as in a shell; null is written out.
        key, _, text = override.partition("=")
        try:
            values.merge_with_dotlist([override if text else f"{override}''"])
        except _UNREADABLE as error:
            raise ConfigError([_unreadable(error, key)], source="the overrides") from None
    changes = pending_keys(_plain(values), None)
    if problems := [f"{said(change)}; give that" for change in changes]:
        raise ConfigError(problems, source="the overrides")
    if VERSION in values:
        raise ConfigError([f"{VERSION} cannot be overridden; it is what a file was written for"])
    if _EXTENDS in values:
        raise ConfigError([f"{_EXTENDS} is for files; on a command line files merge left to right"])
    return values


def _unreadable(error: BaseException, key: str = "") -> str:
    """What a library says about a value that it cannot read, without what may be a credential."""
    if isinstance(error, GrammarParseError):
        said = "'${' begins a reference to another key, which cannot be read; it must read ${a.key}"
    elif isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark and not key else ""
        said = f"not valid YAML: {without_secrets(str(error.problem or error.context))}{place}"
    elif isinstance(error, OmegaConfBaseException):
        said = without_secrets(str(error).partition("\n")[0])
        if isinstance(error, UnsupportedInterpolationType):
            said += f"; a value refers to other keys alone: {ENVIRONMENT}"
    else:  # its text quotes the value
        said = "a value cannot be read as the type that it is marked with, or is far too long"
    path = key or str(getattr(error, "full_key", None) or "")
    if not path:
        return said
    known = path in set(known_keys()) or path.startswith(tuple(_free_keys()))
    if not known and isinstance(error, OmegaConfBaseException):
        said = "unknown key, and its value cannot be read" + nearest(path)
    return f"{shown_path(path.split('.'))}: {said}"


def _origin(item: ErrorDetails, parts: Sequence[tuple[Path, DictConfig]]) -> str:
    """Which file, or that an override, gave the key its value."""
    key = ".".join(str(part) for part in item["loc"] if isinstance(part, str))
    for path, values in reversed(parts):
        try:
            if key and OmegaConf.select(values, key, throw_on_missing=False) is not None:
                return f" (from {path})"
        except _UNREADABLE:  # a name that is no path, or a reference that only all files resolve
            continue
    return ""


def override(key: str, value: str | int | float | Sequence[str]) -> str:
    """The override that gives `key` this very value: no text in it is a number or a reference."""
    if isinstance(value, str):
        value = _literal(value)
    elif not isinstance(value, int | float):
        value = [_literal(text) for text in value]
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _literal(text: str) -> str:
    """`text` as OmegaConf reads it: a backslash makes `${` two characters like any others, and
    backslashes before it count half."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def save_resolved(config: Config, path: str | Path) -> None:
    """Write every key with its value, and the version of the keys; `load_config` reads the file
    back to an equal `Config`.

    Keys that were left at their default because a switch decides them (`reference_compat`) stay
    out, so that loading does not take them for a choice.
    """
    path = Path(path)
    values = {VERSION: history.HISTORY.version} | config.model_dump(mode="json")
    if config.hindsight.reference_compat:
        values["hindsight"] = config.hindsight.model_dump(mode="json", exclude_unset=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    os.replace(temporary, path)


def _free_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Beginnings of keys that are whatever the user says: those below a mapping."""
    for name, info in model.model_fields.items():
        if get_origin(info.annotation) is dict:
            yield f"{prefix}{name}."
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _free_keys(info.annotation, f"{prefix}{name}.")


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Dotted path of every section and every key."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from known_keys(info.annotation, f"{prefix}{name}.")


def _read_file(path: Path) -> list[tuple[Path, DictConfig]]:
    """The files that it extends, each before what it changes, then itself."""
    files = _with_extended(path)
    for file, values, version in files:
        if problems := list(_old_keys(file, values, version)):
            raise ConfigError(problems, source=str(file))
    return [(file, values) for file, values, _ in files]


def read_files(path: Path) -> list[tuple[Path, dict[str, Any], int | None]]:
    """As `_read_file`, whatever the version: each file with its values as they are written, and the
    version, None where nobody knows."""
    return [(file, _plain(values), version) for file, values, version in _with_extended(path)]


@_nothing_from_outside()
def merged_values(parts: Sequence[Mapping[str, Any]], *, resolve: bool = True) -> dict[str, Any]:
    """The values of several files, the last of which wins; resolve: references between keys too.

    Raises:
        ConfigError: one refers to what none of them gives.
    """
    try:
        merged = OmegaConf.merge(*(OmegaConf.create(dict(part)) for part in parts))
        assert isinstance(merged, DictConfig)
        return _plain(merged, resolve=resolve)
    except _UNREADABLE as error:
        raise ConfigError([_unreadable(error)]) from None


def _plain(values: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    plain = OmegaConf.to_container(values, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _with_extended(
    path: Path, *, inside: tuple[Path, ...] = ()
) -> list[tuple[Path, DictConfig, int | None]]:
    values = _read_yaml(path, asked_by=str(inside[-1]) if inside else "")
    if path.resolve() in inside:
        raise ConfigError([f"{path} extends itself, by way of {inside[-1]}"])
    version = _take_version(path, values)
    if _EXTENDS not in values:
        return [(path, values, version)]
    named = values.pop(_EXTENDS)
    others = OmegaConf.to_container(named) if isinstance(named, ListConfig) else named
    if not isinstance(others, list) or not all(isinstance(name, str) for name in others):
        name = shown_file(others) if isinstance(others, str) else "FILE, ..."
        raise ConfigError(
            [f"{_EXTENDS} must be a list of files; write {_EXTENDS}: [{name}]"], source=str(path)
        )
    within = (*inside, path.resolve())
    found = [file for name in others for file in _with_extended(path.parent / name, inside=within)]
    return [*found, (path, values, version)]


def _take_version(path: Path, values: DictConfig) -> int | None:
    """Take the version out of a file's values; None where it says none and nobody knows. A run's
    own `config.yaml` that says none is of the first version, which did not write it."""
    version = _plain(values).get(VERSION)
    values.pop(VERSION, None)
    if version is None:
        return FIRST if path.name == "config.yaml" and looks_like_a_run(path.parent) else None
    if problem := version_problem(version):
        raise ConfigError([problem], source=str(path))
    return int(version)


def _old_keys(path: Path, values: DictConfig, version: int | None) -> Iterator[str]:
    """What the file says under names, or leaves to keys, of an earlier version."""
    migrate = f"`herl config migrate {shlex.quote(str(shown_file(path)))}` rewrites the file"
    plain = _plain(values)
    for change in pending_keys(plain, version):
        yield f"{said(change)}; {migrate}"
    for over in [] if version is None else pending_takeovers(plain, version):
        yield (
            f"{over.new} is not given, and the file is of version {version}, when {over.said} was"
            f" what it is now; {migrate} so that it stays"
        )


def _read_yaml(path: Path, *, asked_by: str = "") -> DictConfig:
    if not _is_file(path):
        raise ConfigError([_no_file(path)], source=asked_by)
    try:
        values = OmegaConf.load(path)  # refuses a key given twice, with the line
    except UnicodeDecodeError:  # its text quotes the file
        raise ConfigError(["not a YAML file: it is not in UTF-8"], source=str(path)) from None
    except OSError as error:
        raise ConfigError([f"not a YAML file: {error}"], source=str(path)) from error
    except _UNREADABLE as error:
        raise ConfigError([_unreadable(error)], source=str(path)) from None
    text = path.read_text(encoding="utf-8")
    # Of a lone word OmegaConf makes a key without a value.
    lone = isinstance(yaml.compose(text, Loader=get_yaml_loader()), yaml.ScalarNode)
    if lone or not isinstance(values, DictConfig) or values.is_empty():
        raise ConfigError(["the file must hold sections such as 'model:'"], source=str(path))
    if traps := list(traps_in_file(text)):
        raise ConfigError(traps, source=str(path))
    return values


def _is_file(path: Path) -> bool:
    """Whether it can be read as a file; a word that is too long for a name, such as an override's,
    is none, nor is what lies in a folder that may not be entered."""
    try:
        return path.is_file()
    except OSError:
        return False


def _no_file(path: Path) -> str:
    """Why there is nothing to read, with what is there instead."""
    where, folder = shown_file(path), path.parent
    what = f"no such file: {where}"
    try:
        if os.path.isdir(path):
            what, folder = f"{where} is a folder; name a file", path
        elif str(path) in set(known_keys()):
            return f"{what}; it is a key, give it a value: {path}=VALUE"
        elif os.path.islink(path) or os.stat(path):
            what = f"{where} is no regular file, nor a link to one"
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that is too long, a folder that is not open
        what = f"{what} ({error.strerror if isinstance(error, OSError) else error})"
    try:
        near = sorted(found.name for found in folder.glob("*.yaml") if found.is_file())
    except OSError:
        near = []
    more = f" and {len(near) - _NAMES_SHOWN} more" if len(near) > _NAMES_SHOWN else ""
    return f"{what}; {folder} has {', '.join(near[:_NAMES_SHOWN])}{more}" if near else what


def _override_problems(overrides: Sequence[str]) -> list[str]:
    """Overrides that are not of the form `section.key=value`, or do not say what they mean."""
    malformed = [
        f"override {shown_override(override)} must read section.key=value, without spaces around"
        " '='"
        for override in overrides
        if not re.fullmatch(r"\w+(\.\w+)*=.*", override, flags=re.DOTALL)
    ]
    return malformed or list(traps_in_overrides(overrides))


def _describe(item: ErrorDetails) -> str:
    """One pydantic error as one line."""
    key = ".".join(str(part) for part in item["loc"])
    path = shown_path(item["loc"])
    value = item["input"]
    if item["type"] == "json_invalid":  # all that was read is its input
        return "a text holds half a character (a lone surrogate); write it in UTF-8"
    if item["type"] == "extra_forbidden":
        if _CREDENTIAL.search(key):
            return (
                f"{path}: a credential cannot be configured{nearest(key)}; it comes from the"
                " environment"
            )
        # Never with its value: under a name nobody knows, anything may be a credential.
        return f"{path}: unknown key{nearest(key)}"
    if item["type"] == "missing":
        return f"{key}: required and not given"
    if item["type"] == "literal_error":
        return f"{key}: {shown(key, value)} is not one of {item['ctx']['expected']}"
    if item["type"] == "tuple_type":
        return _no_list(key, value)
    quote = "; quote it to make it text" if item["type"] == "string_type" else ""
    said = item["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return f"{key}: {shown(key, value)} is not allowed: {said}{_expected(key)}{quote}"


def _no_list(key: str, value: Any) -> str:
    """With how the one value that was given is written as a list."""
    said = shown(key, value)
    item = value if isinstance(value, str) and said == repr(value) else "NAME"
    last = key.rpartition(".")[2]
    return (
        f"{key}: {said} is not a list; write '{key}=[{item}]' in a shell, {last}: [{item}] in a"
        " file"
    )


def nearest(key: str) -> str:
    """A suggestion: this very name in other sections, else the closest key of the same section,
    else the closest name of any section."""
    known = list(known_keys())
    section, _, last = key.rpartition(".")
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    names: dict[str, list[str]] = {}
    for name in known:
        names.setdefault(name.rpartition(".")[2], []).append(name)
    if last in names:
        return f"; did you mean {' or '.join(names[last])}?"
    # By the names alone: what all keys of a section have in common makes none of them closer.
    beside = {name.rpartition(".")[2]: name for name in siblings}
    for near in difflib.get_close_matches(last, beside, n=1, cutoff=0.6):
        return f"; did you mean {beside[near]}?"
    for near in difflib.get_close_matches(last, names, n=1, cutoff=0.75):
        return f"; did you mean {' or '.join(names[near])}?"
    return f"; known here: {', '.join(siblings)}" if siblings else ""


def _expected(key: str) -> str:
    """The key's type, if it is a key of the schema."""
    model: type[BaseModel] = Config
    *sections, last = key.split(".")
    for section in sections:
        annotation = model.model_fields[section].annotation if section in model.model_fields else 0
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    if last not in model.model_fields:
        return ""
    return f" (expected {type_name(model.model_fields[last].annotation)})"
