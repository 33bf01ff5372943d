"""What the converters of data sets share: the values they pass, and reading of raw fields."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from herl_megatron.rubrics.checks import nltk_tools, registry
from herl_megatron.types import Aggregation, Criterion, Message, Prompt, Role

Unclear = Literal["leave_out", "negative", "positive"]
"""What becomes of a pitfall whose wording does not say whether it being true is good or bad."""


class RejectedRow(ValueError):
    """A source row that cannot become a prompt.

    `kind` is a few words that are the same for every row with this problem, so that they can be
    counted; the message says what is wrong with this one.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class SourceRow:
    """One row as the source has it. `number` counts from 1 in its file or split.

    split: the source's own name for the part (`train`, `test`), empty where it has none.
    """

    number: int
    fields: Mapping[str, Any]
    split: str = ""


@dataclass(frozen=True)
class Converted:
    """A prompt and what a person should know about how it was made, in phrases to be counted."""

    prompt: Prompt
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How rows are converted.

    judge: items without a usable check become statements for a judge; else they are left out.
    aggregation: instead of the source's own, None keeps it.
    unclear: see `Unclear`.
    types: HIR's row types that are taken, empty for all.
    benchmark: for numbers that compare: every row is kept, repeated ones too, and where a
        benchmark has a verdict that says nothing, ours is the same.
    """

    judge: bool = True
    aggregation: Aggregation | None = None
    unclear: Unclear = "leave_out"
    benchmark: bool = False
    types: tuple[str, ...] = ()


@dataclass
class Items:
    """The criteria of one row while they are collected, numbered c1, c2, ... in source order."""

    criteria: list[Criterion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: int = 0

    def next_id(self) -> str:
        """The id of the next item of the source, whether it is kept or not."""
        self.seen += 1
        return f"c{self.seen}"

    def finish(self) -> tuple[Criterion, ...]:
        """All criteria; RejectedRow if none is left."""
        if not self.criteria:
            why = "; ".join(dict.fromkeys(self.notes)) or "the row has no criteria"
            raise RejectedRow("no criterion left", why)
        return tuple(self.criteria)


def text_of(fields: Mapping[str, Any], *names: str) -> str:
    """The first of the named fields that is there, as text; numbers (ids) are written out."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    raise RejectedRow(
        f"no text in {' or '.join(names)}",
        f"the row has no text under {' or '.join(map(repr, names))}; its keys are "
        f"{', '.join(map(str, fields)) or 'none'}",
    )


def optional_text(fields: Mapping[str, Any], *names: str) -> str | None:
    """As `text_of`, None where nothing is there."""
    try:
        return text_of(fields, *names)
    except RejectedRow:
        return None


def mapping_of(value: object, name: str) -> dict[str, Any]:
    """An object without its null entries; JSON text of one, as some sets store it, is read."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RejectedRow(f"{name} is no object", f"{name} is not JSON: {error.msg}") from error
    if not isinstance(value, Mapping):
        raise RejectedRow(f"{name} is no object", f"{name} is {value!r:.60}, not an object")
    return {str(key): item for key, item in value.items() if item is not None}


def list_of(value: object, name: str) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise RejectedRow(f"{name} is no list", f"{name} is {value!r:.60}, not a list of items")
    return list(value)


def number_of(value: object, name: str) -> float:
    """A finite number."""
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.inf
    if not math.isfinite(number):
        raise RejectedRow(f"{name} is no number", f"{name} is {value!r:.60}, not a number")
    return number


def aligned(name: str, values: Sequence[Any], other: str, others: Sequence[Any]) -> None:
    """RejectedRow unless two lists of one row are equally long."""
    if len(values) != len(others):
        raise RejectedRow(
            "lists of different length",
            f"{len(values)} entries in {name} and {len(others)} in {other}",
        )


def messages_of(value: object, name: str) -> tuple[Message, ...]:
    """A conversation: a text is one user turn; turns are role/content or from/value pairs."""
    if isinstance(value, str) and value.strip():
        return (Message("user", value),)
    turns = []
    for index, item in enumerate(list_of(value, name)):
        turn = mapping_of(item, f"{name}[{index}]")
        role = str(turn.get("role", turn.get("from", "")))
        role = {"human": "user", "gpt": "assistant"}.get(role, role)
        if role not in get_args(Role):
            raise RejectedRow("unknown role", f"{name}[{index}] has the role {role!r}")
        turns.append(Message(cast(Role, role), text_of(turn, "content", "value")))
    if turns[-1].role != "user":
        raise RejectedRow(
            "last turn is not the user's", f"the last turn of {name} is the {turns[-1].role}'s"
        )
    return tuple(turns)


def rest_of(fields: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The fields that have no place in a canonical row; they are kept under `extra`.

    Absent ones are null, or NaN where pandas wrote the set.
    """
    taken = set(used)
    return {
        key: item
        for key, item in fields.items()
        if key not in taken and item is not None and item == item
    }


def rule_problem(criterion: Criterion) -> str:
    """Why a rule criterion can be checked on no machine, or the empty string.

    Says nothing about NLTK data or packages that this machine lacks: what becomes of a row must
    not depend on where it is prepared.
    """
    try:
        problem = registry.parameter_problem(criterion)
    except ValueError:
        return "no such check"
    if problem:
        return f"its parameters do not fit: {problem}"
    unread = registry.unreadable(criterion)
    return "" if unread.startswith(_missing_here()) else unread


def missing_here(criterion: Criterion) -> str:
    """What a rule criterion without `rule_problem` needs and this machine lacks, or nothing."""
    check = registry.get(criterion.check)
    for module in check.requires:
        if importlib.util.find_spec(module) is None:
            return f"the package {module} is not installed"
    needed = [problem for problem in map(nltk_tools.missing_data, check.data) if problem]
    if needed:
        return needed[0]
    # A check that reads texts finds out with the text that it needs NLTK's data.
    unread = registry.unreadable(criterion)
    return next((problem for problem in _missing_here() if unread.startswith(problem)), "")


def _missing_here() -> tuple[str, ...]:
    """Complaints of this machine about NLTK data."""
    resources = (nltk_tools.PUNKT, nltk_tools.TAGGER, nltk_tools.STOPWORDS)
    return tuple(filter(None, map(nltk_tools.missing_data, resources)))


def prompt_key(messages: Sequence[Message]) -> str:
    """Hash of a conversation up to letter case and white space: equal prompts have equal keys."""
    turns = [[m.role, re.sub(r"\s+", " ", m.content).strip().casefold()] for m in messages]
    return hashlib.sha256(json.dumps(turns, allow_nan=False).encode()).hexdigest()
