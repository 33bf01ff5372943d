"""A step's groups on disk, whole: whoever reads them can train on them as the step did.

One gzip file per step. Its first line says of which step and of which tokenizer and rows (the
fingerprints of `data.fingerprints`), each further line is one `ScoredGroup`, arrays as base64.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from herl_megatron.files.run_files import GROUPS
from herl_megatron.types import ScoredGroup

_GROUP: TypeAdapter[ScoredGroup] = TypeAdapter(ScoredGroup)
_FORMAT = 1
_LEVEL = 3  # log-probs hardly get smaller; more would only take longer


def write_groups(
    path: Path, groups: Sequence[ScoredGroup], fingerprints: Mapping[str, str]
) -> None:
    """Write the groups of a step; the file appears whole, by rename, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    head = {"format": _FORMAT, "groups": len(groups), "fingerprints": dict(fingerprints)}
    with gzip.open(temporary, "wb", compresslevel=_LEVEL) as file:
        file.write(json.dumps(head, allow_nan=False).encode() + b"\n")
        for group in groups:
            file.write(_GROUP.dump_json(group) + b"\n")
    os.replace(temporary, path)


def read_groups(path: Path) -> tuple[list[ScoredGroup], dict[str, str]]:
    """The groups that `write_groups` wrote, bit for bit, and the fingerprints.

    Raises:
        ValueError: the file is cut off, damaged or of another format.
    """
    try:
        with gzip.open(path, "rb") as file:
            lines = file.read().removesuffix(b"\n").split(b"\n")
        head = json.loads(lines[0])
        if not isinstance(head["groups"], int) or not isinstance(head["fingerprints"], dict):
            raise ValueError(f"{path} is no whole file of groups: its first line is {head!r:.80}")
        if head["format"] != _FORMAT:
            raise ValueError(f"{path} is of format {head['format']!r}; {_FORMAT} can be read")
        groups = [_GROUP.validate_json(line) for line in lines[1:]]
    except (OSError, EOFError, zlib.error, ValidationError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no whole file of groups: {_first_line(error)}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no whole file of groups: {error}") from error
    if len(groups) != head["groups"]:
        raise ValueError(f"{path} says {head['groups']} groups and holds {len(groups)}")
    return groups, head["fingerprints"]


def saved_steps(start: Path, count: int) -> list[tuple[int, Path]]:
    """Number and file of `count` saved steps that follow each other.

    start: a run's folder, whose first saved step is taken, or one of its files, which is the first.

    Raises:
        ValueError: there is none, or one of them is missing.
    """
    first = start
    if start.is_dir():
        found = sorted(
            (int(name["number"]), file)
            for file in (start / "rollouts").glob("step_*.groups.gz")
            if (name := GROUPS.fullmatch(file.name))
        )
        if not found:
            raise ValueError(
                f"train.groups_from: {start} holds no rollouts/step_*.groups.gz; make them with"
                " train.keep_groups=true"
            )
        first = found[0][1]
    name = GROUPS.fullmatch(first.name)
    if name is None or not os.path.isfile(first):
        raise ValueError(
            f"train.groups_from: {start} is neither a run's folder nor a file step_N.groups.gz"
        )
    begin = int(name["number"])
    files = [(n, first.with_name(f"step_{n:06d}.groups.gz")) for n in range(begin, begin + count)]
    for number, file in files:
        if not os.path.isfile(file):
            raise ValueError(
                f"train.steps is {count}, so steps {begin} to {begin + count - 1} are wanted, but"
                f" {file} is missing; lower train.steps to {number - begin}"
            )
    return files


def _first_line(error: BaseException) -> Any:
    return (str(error).splitlines() or [type(error).__name__])[0]
