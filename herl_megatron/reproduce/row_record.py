"""`row.json`: in the folder of a row, which row of the tables it is and by which commands.

By it a run is known as a cell of the table, and a chain that goes on does so with the settings that
it was begun with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from herl_megatron.config.decides import keys
from herl_megatron.config.schema.base import Decides
from herl_megatron.files.strict_json import read_object
from herl_megatron.reproduce.stage import Preset, Scale, Stage

RECORD = "row.json"
_MADE_BY = "herl_megatron"


@dataclass(frozen=True)
class RowRecord:
    """What a folder holds.

    row: its name; empty for what rows share. preset: empty for `base` too, which has none.
    stages: name -> what follows `herl`, of every stage that was begun.
    read: name -> the stages that it was made from, each with the fingerprint that its product had
    then (`lineage`).
    """

    row: str
    scale: str
    preset: str
    stages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    read: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_record(folder: Path) -> RowRecord | None:
    """The record of a folder; None where there is none.

    Raises:
        ValueError: the file is there and is no such record.
    """
    file = folder / RECORD
    if not os.path.lexists(file):
        return None
    values = read_object(file)
    if values.pop("made_by", None) != _MADE_BY or not _is_record(values):
        raise ValueError(f"{file} is not what `herl reproduce` writes; restore it, or name its run")
    return RowRecord(**values)


def _is_record(values: Mapping[str, Any]) -> bool:
    stages, read = values.get("stages"), values.get("read", {})
    return (
        set(values) | {"read"} == {"row", "scale", "preset", "stages", "read"}
        and isinstance(values["row"], str)
        and values["scale"] in get_args(Scale)
        and values["preset"] in ("", *get_args(Preset))
        and isinstance(stages, dict)
        and all(isinstance(argv, list) for argv in stages.values())
        and all(isinstance(word, str) for argv in stages.values() for word in argv)
        and isinstance(read, dict)
        and all(isinstance(prints, dict) for prints in read.values())
        and all(isinstance(text, str) for prints in read.values() for text in prints.values())
    )


def write_record(folder: Path, record: RowRecord) -> None:
    """Write it; the file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{RECORD}.tmp"
    text = json.dumps({"made_by": _MADE_BY} | asdict(record), indent=1, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, folder / RECORD)


def changed(record: RowRecord, other: RowRecord, stages: Sequence[Stage]) -> str:
    """How a chain differs from what its folder holds already, or the empty string.

    Looked at are stages that are done; one that was begun is for its own command to go on with.
    Neither keys that decide nothing about the numbers make a difference (where a judge is), nor
    where `configs/` lies or how the folder itself is written.
    """
    for key in ("row", "scale", "preset"):
        then, now = getattr(record, key), getattr(other, key)
        if then != now:
            return f"{key} was {then or 'none'!r} and is {now or 'none'!r}"
    for stage in stages:
        if stage.name not in record.stages or not stage.is_done():
            continue
        then, now = _deciding(record.stages[stage.name]), _deciding(stage.argv)
        said = [f"with {word}" for word in then if word not in now]
        said += [f"without {word}" for word in now if word not in then]
        if said:
            return f"{stage.name} was made {', '.join(said)}"
    return ""


def _deciding(argv: Sequence[str]) -> list[str]:
    """The words of a command that decide about its results."""
    nothing = {key.path for key in keys() if key.decides in (Decides.SPEED, Decides.NOTHING)}
    return [_below(word) for word in argv if word.partition("=")[0] not in nothing]


def _below(word: str) -> str:
    """A file of `configs/` by its path below it."""
    folder, found, name = word.rpartition("configs/")
    return f"configs/{name}" if found and name.endswith(".yaml") and "=" not in folder else word
