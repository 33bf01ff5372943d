"""`herl config migrate FILE...`: a file of an earlier version, rewritten for the keys of today.

Only what has to change is changed, in the text; what the result says is compared with what
`config.upgrade` says of the values before anything is written. The old text stays beside it.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from herl_megatron.config import history, upgrade, yaml_edit
from herl_megatron.config.decides import keys
from herl_megatron.config.history import NewDefault, Removed, TookOver
from herl_megatron.config.load import ConfigError, merged_values, nearest, read_files
from herl_megatron.config.schema import Config, ModelConfig
from herl_megatron.config.schema.base import Decides
from herl_megatron.config.secrets import shown_path, without_secrets
from herl_megatron.config.upgrade import FIRST, VERSION

_BYTE_ORDER_MARK = "\ufeff"
_RESULTS = (Decides.NUMBERS, Decides.VERDICTS, Decides.EVALUATION)


@dataclass(frozen=True)
class Migration:
    """What becomes of one file: its text before and after, and what a person should know."""

    path: Path
    before: str
    after: str
    notes: tuple[str, ...]

    @property
    def backup(self) -> Path:
        """Where the old text stays."""
        target = self.path.resolve()
        return target.with_name(f"{target.name}.before-migrate")

    @property
    def diff(self) -> str:
        """As of `diff -u`, without what may be a credential; empty where nothing changes."""
        if self.before == self.after:
            return ""
        both = self.before.splitlines(), self.after.splitlines()
        _, _, *lines = difflib.unified_diff(*both, lineterm="")
        # Twice, for `api_key: x` beside what is hidden for its looks.
        shown = [line[:1] + without_secrets(without_secrets(line[1:])) for line in lines]
        after = f"{self.path} (version {history.HISTORY.version})"
        return "".join(f"{line}\n" for line in (f"--- {self.path}", f"+++ {after}", *shown))


def plan_migrations(paths: Sequence[Path], *, keep_defaults: bool = False) -> list[Migration]:
    """What `migrate` would do to the files; changes nothing.

    keep_defaults: write the defaults of the file's version that were changed since.

    Raises:
        ConfigError: a file cannot be read, is of a newer version, cannot be rewritten without a
            person, or its `FILE.before-migrate` is another text.
    """
    given = {path.resolve() for path in paths}
    found = [_plan(path, given=given, keep_defaults=keep_defaults) for path in paths]
    problems = [
        f"{plan.path} is to be rewritten, but {plan.backup} is there and not its text; move it"
        for plan in found
        if plan.before != plan.after and os.path.lexists(plan.backup)
        if not plan.backup.is_file() or plan.backup.read_bytes() != plan.before.encode()
    ]
    if problems:
        raise ConfigError(problems)
    return found


def write_migration(plan: Migration) -> None:
    """Rewrite the file, as a whole or not at all, and keep the old text in `plan.backup`."""
    target = plan.path.resolve()
    if not plan.backup.exists():  # else it holds this very text: an earlier start was killed
        _write(plan.backup, plan.before, like=target)
    _write(target, plan.after, like=target)


def _write(path: Path, text: str, *, like: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(like, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plan(path: Path, *, given: set[Path], keep_defaults: bool) -> Migration:
    files = read_files(path)  # it comes last, behind what it extends
    before = path.read_bytes().decode("utf-8")
    body = before.removeprefix(_BYTE_ORDER_MARK)
    version = files[-1][2]
    since = FIRST if version is None else version
    try:
        after, expected = _renamed(body, version)
        chain = _chain(files)
        defaults = list(upgrade.changed_defaults(chain, since)) if "model" in chain else []
        added = {over.new: _taken_over(over, chain) for over in _takeovers(expected, chain, since)}
        added |= {new.key: new.old for new in defaults if keep_defaults or _decides_results(new)}
        for key, value in added.items():
            after = yaml_edit.insert(after, key, yaml_edit.as_yaml(value))
            upgrade.put(expected, key, value)
        if after != body or (version is not None and version < history.HISTORY.version):
            after = _with_version(after)
        _compare(body, after, expected)
    except ConfigError as error:
        raise ConfigError(error.problems, source=str(path)) from error
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            [f"herl cannot rewrite it: {without_secrets(str(error))}; change it by hand"],
            source=str(path),
        ) from error
    notes = [*_said_defaults(defaults, added, since), *_left(expected, version)]
    notes += [
        f"it extends {other}, which is of an earlier version too: migrate that as well"
        for other, values, of in files[:-1]
        if other.resolve() not in given and _is_old(values, of)
    ]
    return Migration(path, before, before[: len(before) - len(body)] + after, tuple(notes))


def _chain(files: Sequence[tuple[Path, dict[str, Any], int | None]]) -> dict[str, Any]:
    """What a file and those that it extends come to, under the names of today."""
    parts = [upgrade.renamed(values, of) for _, values, of in files]
    try:
        return merged_values(parts)
    except ConfigError:  # a part that refers to keys of another, with which it is given
        return merged_values(parts, resolve=False)


def _renamed(text: str, version: int | None) -> tuple[str, dict[str, Any]]:
    """The text under the names of today, and the values that it must then have."""
    values = yaml_edit.read(text)
    values.pop(VERSION, None)
    expected = upgrade.renamed(values, version, keep_removed=True)
    for change in upgrade.changes_since(version):
        value = upgrade.look_up(yaml_edit.read(text), change.old)
        if isinstance(change, Removed) or value is upgrade.ABSENT:
            continue
        if change.convert is not None:
            text = yaml_edit.set_value(text, change.old, change.convert(value))
        section, _, name = change.new.rpartition(".")
        if change.old.rpartition(".")[0] == section:
            text = yaml_edit.rename(text, change.old, name)
        else:
            text = yaml_edit.move(text, change.old, change.new)
        new = "${" + change.new + "}"
        text = yaml_edit.replace_in_values(text, upgrade.reference(change.old), new)
    return text, expected


def _takeovers(own: Mapping[str, Any], chain: Mapping[str, Any], since: int) -> Iterator[TookOver]:
    """Keys that the file needs, because it or what it extends has a use for them and it gives one
    of the keys that decided then; `own` and `chain` have the names of today."""
    for over in history.HISTORY.took_over:
        then = (over.where, *(upgrade.name_today(key, over.since - 1) for key in over.sources))
        used = upgrade.look_up(chain, over.where) not in (upgrade.ABSENT, None, "")
        if over.since > since and used and not upgrade.has(own, over.new):
            if any(upgrade.has(own, key) for key in then):
                yield over


def _taken_over(over: TookOver, chain: Mapping[str, Any]) -> Any:
    try:
        return upgrade.taken_over(over, chain)
    except TypeError:
        raise yaml_edit.CannotEdit(
            f"{over.new} must be what {over.said} was, which refers to keys that it does not give"
        ) from None


def _decides_results(new: NewDefault) -> bool:
    return any(key.path == new.key and key.decides in _RESULTS for key in keys())


def _with_version(text: str) -> str:
    version = history.HISTORY.version
    if upgrade.has(yaml_edit.read(text), VERSION):
        return yaml_edit.set_value(text, VERSION, version)
    return yaml_edit.insert(text, VERSION, str(version))


def _compare(before: str, after: str, expected: Mapping[str, Any]) -> None:
    """Refuse a result that says something else than it must, or lacks a comment."""
    found = yaml_edit.read(after)
    found.pop(VERSION, None)
    if yaml_edit.flattened(found) != yaml_edit.flattened(expected):
        raise yaml_edit.CannotEdit("the result would not say what it must")
    if lost := _comments(before) - _comments(after):
        raise yaml_edit.CannotEdit(f"{lost.total()} of its comments would be lost")


def _comments(text: str) -> Counter[str]:
    return Counter(found.strip() for found in re.findall(r"(?m)(?:^|\s)#.*$", text))


def _said_defaults(
    defaults: Sequence[NewDefault], added: Mapping[str, Any], since: int
) -> Iterator[str]:
    """Which defaults the file leaves open that are others now, in one line."""
    now = Config(model=ModelConfig(path="")).model_dump(mode="json")
    changed = [
        f"{new.key} {new.old} -> {upgrade.look_up(now, new.key)}"
        for new in defaults
        if new.key not in added
    ]
    if changed:
        yield (
            f"defaults that changed since version {since} and that it leaves open:"
            f" {', '.join(changed)}; no result depends on them, and --keep-defaults writes the old"
            " ones"
        )


def _left(values: Mapping[str, Any], version: int | None) -> Iterator[str]:
    """Keys that `load_config` will refuse all the same."""
    removed = {}
    for change in upgrade.pending_keys(values, version):
        removed[change.old] = upgrade.said(change)
    known = {key.path for key in keys()}
    for path in yaml_edit.flattened(values):
        parts = path.split(".")
        if path == "extends" or any(".".join(parts[:n]) in known for n in (1, 2)):
            continue
        if path in Config.model_fields:  # `train:` with nothing below it, or with no keys
            yield f"left as it is: {path} is a section and must hold keys; take it out"
            continue
        what = removed.get(path, f"{shown_path(parts)}: unknown key{nearest(path)}")
        yield f"left as it is: {what}"


def _is_old(values: Mapping[str, Any], version: int | None) -> bool:
    since = FIRST if version is None else version
    return any(upgrade.pending_keys(values, version)) or any(
        upgrade.pending_takeovers(values, since)
    )
