"""Rollout files read back, a group at a time: each line is what `observability.rollout_log` writes.

People cut such files, join them and copy them by hand, so every value that a reader uses is looked
at first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from herl_megatron.files.os_errors import absent
from herl_megatron.files.strict_json import check_values, not_utf8, open_lines, parse_json

Record = Mapping[str, Any]
"""One line of a rollout file: a group, see `observability.rollout_log`."""


def read_records(path: Path, *, answers_only: bool = False) -> Iterator[Record]:
    """The groups of one rollout file.

    answers_only: prompt, texts and rewards are enough; nothing else is looked at.

    Raises:
        ValueError: the file cannot be read; a line that is no group, with file and line, and the
            place in it.
    """
    if problem := absent(path, "file"):
        raise ValueError(f"{path}: there is {problem}")
    try:
        with open_lines(str(path)) as file:
            for number, line in enumerate(file, start=1):
                yield _record(line, f"{path}:{number}", answers_only=answers_only)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_line(line: str, where: str) -> object:
    """The JSON value of one line.

    Raises:
        ValueError: it is not UTF-8 or no JSON, or holds what no record may; with its place.
    """
    if problem := not_utf8(line):
        raise ValueError(f"{where}: {problem}")
    try:
        record = parse_json(line, fix="every line must be one JSON object")
        check_values(record, "record")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return record


def _record(line: str, where: str, *, answers_only: bool) -> Record:
    record = parse_line(line, where)
    if problem := _problem(record, _Answers if answers_only else _Group):
        raise ValueError(f"{where} is no group of rollouts ({problem}); is it a rollout file?")
    assert isinstance(record, Mapping), "as looked at"
    return record


def _problem(record: object, kind: type[_Answers] | type[_Group]) -> str:
    """The first value that is not as a run writes it, or the empty string."""
    try:
        group = kind.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    if isinstance(group, _Answers):
        return ""
    named = [(f"revisions.{i}.parent", r.parent) for i, r in enumerate(group.revisions)]
    named += [(f"replays.{i}.of", replay.of) for i, replay in enumerate(group.replays)]
    wrong = (f"{place} is {rollout}" for place, rollout in named if rollout >= len(group.rollouts))
    return next((f"{said}, of {len(group.rollouts)} rollouts" for said in wrong), "")


class _Part(BaseModel):
    """What is read, with types as JSON has them; more keys may be there."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Message(_Part):
    role: str
    content: str


class _Criterion(_Part):
    id: str
    check: str | None = None
    description: str | None = None


class _Verdict(_Part):
    criterion: str
    reason: str
    grade: float | None = None


class _Row(_Part):
    reward: float | None
    advantage: float


class _Answer(_Part):
    text: str
    finish_reason: str = ""
    reward: float | None


class _Response(_Answer):
    unscored: str | None
    satisfied: list[str]
    unmet: list[str]
    verdicts: list[_Verdict]
    row: _Row | None = None


class _Turn(_Part):
    drawn: bool
    text: str


class _Rollout(_Response):
    index: int
    turns: list[_Turn] = []


class _Revision(_Response):
    parent: int = Field(ge=0)
    accepted: bool = False
    replaces: int | None = None


class _Replay(_Part):
    of: int = Field(ge=0)
    prompt: str
    satisfied: list[str]
    row: _Row | None = None


class _Prompt(_Part):
    prompt_id: str
    source: str = ""
    messages: list[_Message]


class _Answers(_Prompt):
    rollouts: list[_Answer] = Field(min_length=1)
    revisions: list[_Answer] = []


class _Group(_Prompt):
    criteria: list[_Criterion] = []
    rollouts: list[_Rollout] = Field(min_length=1)
    revisions: list[_Revision] = []
    replays: list[_Replay] = []
