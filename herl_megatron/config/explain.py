"""The schema as a page for people.

python -m herl_megatron.config.explain > docs/configuration.md
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from os.path import isfile
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from herl_megatron.config import history
from herl_megatron.config.decides import Key, keys
from herl_megatron.config.load import (
    NO_FILE,
    ConfigError,
    load_config,
    load_saved,
    nearest,
)
from herl_megatron.config.purpose import Purpose, uses
from herl_megatron.config.schema import Config, ModelConfig
from herl_megatron.config.schema.base import Decides
from herl_megatron.config.secrets import shown_path
from herl_megatron.config.type_names import type_name
from herl_megatron.config.upgrade import changes_since, said

_HEAD = """# Configuration

Every key, with its default and what it decides. This page is generated from the schema
(`python -m herl_megatron.config.explain > docs/configuration.md`).

A run that goes on (`run.resume=true`) must have the values that it began with in every key that
decides numbers or verdicts; a longer run (`train.steps`) under a constant learning rate is the one
exception. Where *evaluation* changed, held-out numbers from before are left out of the summary.
Where a key says *by content*, what the file holds is compared and not its path; so are tokenizer,
chat template and `config.json` of `model.path`, and the source of code of your own
(`scoring.check_modules`, `scoring.group_reward`, `algorithm.loss`, `algorithm.advantage`).

| decides | meaning |
|---|---|
| numbers | what is sampled, trained or reported |
| verdicts | how a response is scored |
| evaluation | what the held-out numbers mean |
| speed | time, memory, placement and patience |
| nothing | names, files, prices, how often something is looked at or kept |
"""

_VERSIONS = """## version

`version: {version}` at the top of a file says for which keys it was written; a run's `config.yaml`
and its checkpoints have it, a file of your own may. One that says nothing is read with the keys of
today. A key that was renamed or removed is refused by what became of it, and `herl config migrate
FILE...` rewrites the file, comments and order kept, the old text beside it in
`FILE.before-migrate` (`--check` only shows the difference). A file without a version is then taken
for one of version 1, and files that it extends are named, to be migrated as well. Of a default that
changed and decides no result, `migrate` says so and writes nothing, with `--keep-defaults` the old
one. Checkpoints and runs of earlier versions are resumed and reported as they are.
"""

_OF_A_FILE = {
    "version": "whole number at the top of a file: the version of the keys that it is written for;"
    " left out, today's",
    "extends": "list of files, at the top of a file and named from its folder, that it changes;"
    " they merge left to right, then the file itself",
}


def keys_for_help(purpose: str, *, width: int) -> Iterator[tuple[str, str]]:
    """(section and what it is, a line for each key) of the keys that `herl PURPOSE` reads; of
    `score` those that only `--judge-set` sets, of `plan` those of a training run, of `doctor` all
    that there are."""
    for section, info in Config.model_fields.items():
        model = _model(info)
        lines = [
            textwrap.fill(
                f"{section}.{name}  ({_default(field)})  {_flat(field.description or '')}",
                width=width, initial_indent="  ", subsequent_indent="      ",
            )
            for name, field in model.model_fields.items()
            if _is_listed(purpose, f"{section}.{name}")
        ]  # fmt: skip
        if lines:
            about = f"{section}: {_flat(model.__doc__ or '')}"
            yield about.replace("\\|", "|"), "\n".join(lines).replace("\\|", "|")


def _is_listed(purpose: str, path: str) -> bool:
    if purpose == "score":
        return path.startswith("judge.")
    if purpose == "doctor":
        return True
    return uses("train" if purpose == "plan" else cast(Purpose, purpose), path)


def explain(path: str) -> str:
    """What a key means, its type, default and what it decides; of a section, of all its keys.

    Raises:
        ValueError: there is no such key; names the nearest, or what became of it.
    """
    if path in _OF_A_FILE:
        return f"{path}: {_OF_A_FILE[path]}"
    section, _, name = path.partition(".")
    found = [
        key
        for key in keys()
        if key.path == path or (not name and key.path.startswith(f"{section}."))
    ]
    if not found:
        for change in changes_since(None):
            if change.old == path:
                raise ValueError(said(change))
        raise ValueError(f"{shown_path(path.split('.'))}: unknown key{nearest(path)}")
    return "\n\n".join(_explained(key) for key in found)


def _explained(key: Key) -> str:
    section, _, name = key.path.partition(".")
    field = _model(Config.model_fields[section]).model_fields[name]
    about = textwrap.fill(_flat(field.description or ""), width=96).replace("\\|", "|")
    kind = _default(field).replace("\\|", "|")
    return f"{key.path}: {kind}; decides {_decides(key.decides, key.by_content)}\n{about}"


def find(text: str) -> Config:
    """The configuration of a file, of several that merge (`a.yaml,b.yaml`), or of a run's folder.

    Raises:
        ConfigError: as `load_config`.
    """
    if isfile(Path(text) / "config.yaml"):
        return load_saved(Path(text) / "config.yaml")
    names = [name for name in text.split(",") if name]
    if not names:
        raise ConfigError([NO_FILE])
    return load_config(names)


def diff(one: Config, other: Config) -> list[str]:
    """A line for each key that differs: `path: value of one -> value of the other`."""
    left, right = _values(one), _values(other)
    return [
        f"{key}: {_shown(left[key])} -> {_shown(right[key])}"
        for key in left
        if left[key] != right[key]
    ]


def show(config: Config, *, everything: bool = False) -> str:
    """YAML of the keys that differ from their defaults, or of all."""
    values = config.model_dump(mode="json")
    if not everything:
        plain = Config(model=ModelConfig(path="")).model_dump(mode="json")
        values = {
            section: changed
            for section, keys_of in values.items()
            if (changed := {k: v for k, v in keys_of.items() if v != plain[section][k]})
        }
    return str(yaml.safe_dump(values, sort_keys=False))


def _values(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, keys_of in config.model_dump(mode="json").items()
        for name, value in keys_of.items()
    }


def _model(info: FieldInfo) -> type[BaseModel]:
    assert isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    return info.annotation


def reference() -> str:
    """The whole page, Markdown."""
    return "\n".join([_HEAD, *_sections(), *_versions()])


def _sections() -> Iterator[str]:
    by_path = {key.path: key for key in keys()}
    for section, info in Config.model_fields.items():
        model = _model(info)
        yield f"## {section}\n"
        yield f"{_flat(model.__doc__ or '')}\n"
        yield "| key | type, default | decides | |\n|---|---|---|---|"
        for name, field in model.model_fields.items():
            key = by_path[f"{section}.{name}"]
            yield (
                f"| `{name}` | {_default(field)} | {_decides(key.decides, key.by_content)} |"
                f" {_flat(field.description or '')} |"
            )
        yield ""


def _versions() -> Iterator[str]:
    """What changed from version to version of the keys (`config.history`)."""
    table = history.HISTORY
    yield _VERSIONS.format(version=table.version)
    yield "| version | what changed |\n|---|---|"
    for change in changes_since(1):
        yield f"| {change.since} | {_flat(said(change))} |"
    for over in table.took_over:
        yield (
            f"| {over.since} | `{over.new}` decides what {over.said} did; `herl config migrate`"
            f" writes that sum where `{over.where}` is given |"
        )
    defaults = {key: value for key, value in _values(Config(model=ModelConfig(path=""))).items()}
    for new in table.new_defaults:
        yield f"| {new.since} | `{new.key}`: default {new.old} -> {_shown(defaults[new.key])} |"
    yield ""


def _decides(decides: Decides, by_content: bool) -> str:
    return f"{decides.value}, by content" if by_content else decides.value


def _default(field: FieldInfo) -> str:
    kind = type_name(field.annotation).replace("|", "\\|")
    if field.default is PydanticUndefined:
        return f"{kind}, required"
    return f"{kind}, `{_shown(field.default)}`"


def _shown(value: Any) -> str:
    return json.dumps(value if not isinstance(value, tuple) else list(value), allow_nan=False)


def _flat(text: str) -> str:
    """On one line, for a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
