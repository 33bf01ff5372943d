"""Configurations of earlier versions, as plain values: what is old in one, and what it means now.

Pure; `config.history` has the table, `config.migrate` changes files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from herl_megatron.config import history
from herl_megatron.config.decides import keys
from herl_megatron.config.history import NewDefault, Removed, Renamed, TookOver

VERSION = "version"
"""The key at the top of a file that says for which version of the keys it was written."""
FIRST = 1
"""The version of what says none and was not written by hand today: a run's, a checkpoint's."""

ABSENT = object()
"""What `look_up` finds where there is nothing."""


def version_problem(version: Any) -> str:
    """What is wrong with what a file says its version is, or the empty string."""
    newest = history.HISTORY.version
    if isinstance(version, bool) or not isinstance(version, int) or version < FIRST:
        return f"{VERSION} must be a whole number from {FIRST} to {newest}, or be left out"
    if version > newest:
        return (
            f"{VERSION} is {version}, but this herl_megatron knows the keys of versions up to"
            f" {newest} only; use the herl_megatron that wrote it, or a newer one"
        )
    return ""


def pending_keys(values: Mapping[str, Any], version: int | None) -> Iterator[Renamed | Removed]:
    """Keys in `values` that were renamed or removed since, oldest change first.

    version: what `values` were written for; None for what does not say so, in which a name that has
        a meaning today has that meaning.
    """
    yield from (change for change in changes_since(version) if has(values, change.old))


def changes_since(version: int | None) -> Iterator[Renamed | Removed]:
    """As `pending_keys`, whatever the values are."""
    changes: list[Renamed | Removed] = [*history.HISTORY.renamed, *history.HISTORY.removed]
    today = {key.path for key in keys()}
    for change in sorted(changes, key=lambda change: change.since):
        if change.old not in today or (version is not None and change.since > version):
            yield change


def said(change: Renamed | Removed) -> str:
    """What became of the key, with its name of today or what to do instead."""
    if isinstance(change, Removed):
        return f"{change.old} was removed in version {change.since} of the keys: {change.instead}"
    new = name_today(change.new, change.since)
    return f"{change.old} is called {new} since version {change.since} of the keys"


def name_today(path: str, version: int) -> str:
    """What the key `path` of a version is called now."""
    for later in sorted(history.HISTORY.renamed, key=lambda change: change.since):
        if later.old == path and later.since > version:
            path = later.new
    return path


def pending_takeovers(values: Mapping[str, Any], version: int) -> Iterator[TookOver]:
    """Keys that `values` of `version` need and do not have, because others decided then."""
    for change in history.HISTORY.took_over:
        used = look_up(values, change.where) not in (ABSENT, None, "")
        if change.since > version and used and look_up(values, change.new) is ABSENT:
            yield change


def changed_defaults(values: Mapping[str, Any], version: int) -> Iterator[NewDefault]:
    """Keys that `values` of `version` leave to a default that is another one since."""
    for change in history.HISTORY.new_defaults:
        if change.since > version and look_up(values, change.key) is ABSENT:
            yield change


def taken_over(change: TookOver, values: Mapping[str, Any]) -> Any:
    """The value that the key `change.new` had by way of the keys that decided then; they stand in
    `values` under their names of today."""
    found = (look_up(values, name_today(key, change.since - 1)) for key in change.sources)
    defaults = change.sources.values()
    given = (
        then if value is ABSENT else value for value, then in zip(found, defaults, strict=True)
    )
    return change.value(*given)


def upgraded(values: Mapping[str, Any], version: int | None) -> dict[str, Any]:
    """`values` of `version` as the keys of today say it; unknown keys stay.

    Raises:
        ValueError: as `renamed`.
    """
    result = renamed(values, version)
    for over in [] if version is None else list(pending_takeovers(result, version)):
        put(result, over.new, taken_over(over, result))
    return result


def renamed(
    values: Mapping[str, Any], version: int | None, *, keep_removed: bool = False
) -> dict[str, Any]:
    """`values` of `version` under the names of today; keys that were removed since are gone.

    Raises:
        ValueError: both a key's old name and its new one are given, or a value that would have to
            be converted refers to another key.
    """
    result: dict[str, Any] = _copied(values)
    for change in changes_since(version):
        if not has(result, change.old) or (keep_removed and isinstance(change, Removed)):
            continue
        value = _pop(result, change.old)
        if isinstance(change, Removed):
            continue
        if has(result, change.new):
            raise ValueError(
                f"both {change.old} and {change.new} are given, which is its new name; take one out"
            )
        if change.convert is not None:
            if isinstance(value, str) and "${" in value:
                raise ValueError(
                    f"{change.old} refers to another key, whose value is not known here"
                )
            value = change.convert(value)
        put(result, change.new, value)
        result = _redirected(result, change)
    return result


def look_up(values: Mapping[str, Any], path: str) -> Any:
    """The value under a dotted path, or a mark that is equal to nothing."""
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return ABSENT
        found = found[part]
    return found


def has(values: Mapping[str, Any], path: str) -> bool:
    """Whether there is a value under a dotted path, be it null."""
    return look_up(values, path) is not ABSENT


def put(values: MutableMapping[str, Any], path: str, value: Any) -> None:
    """Set the value under a dotted path, with the sections on the way."""
    *sections, name = path.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def reference(path: str) -> re.Pattern[str]:
    """What another value says to take over the value under `path`."""
    return re.compile(r"\$\{\s*" + re.escape(path) + r"\s*\}")


def _pop(values: MutableMapping[str, Any], path: str) -> Any:
    section, _, rest = path.partition(".")
    if not rest:
        return values.pop(section)
    value = _pop(values[section], rest)
    if not values[section]:
        del values[section]
    return value


def _copied(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copied(value) for key, value in values.items()}
    return [_copied(value) for value in values] if isinstance(values, list) else values


def _redirected(values: Any, change: Renamed) -> Any:
    """References to the old name become such to the new one."""
    if isinstance(values, Mapping):
        return {key: _redirected(value, change) for key, value in values.items()}
    if isinstance(values, list):
        return [_redirected(value, change) for value in values]
    if isinstance(values, str):
        return reference(change.old).sub("${" + change.new + "}", values)
    return values
