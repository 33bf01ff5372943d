"""One canonical row (a mapping, as in JSONL or Parquet) to the types, and back.

Errors are ValueErrors that name the key, its value and the fix; the caller adds file and line.
A key whose value is null counts as absent: Parquet stores every key in every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, cast, get_args

from herl_megatron.files.strict_json import check_values
from herl_megatron.rubrics.rubric import validate_rubric
from herl_megatron.types import Aggregation, Criterion, Message, Polarity, Prompt, Role, Rubric

_PROMPT_KEYS = ("id", "messages", "rubric", "source", "reference_answer", "extra")
_PLAIN_PROMPTS = ("prompt", "question", "instruction", "query")
_PLAIN_RUBRICS = ("rubric", "rubrics", "criteria")
"""What `herl data plain` takes (`sources.plain`; a test keeps them equal)."""
_SFT_KEYS = ("id", "messages", "source", "extra")
_PAIR_KEYS = ("id", "messages", "chosen", "rejected", "source", "extra")
_CRITERION_KEYS = ("id", "kind", "check", "params", "description", "weight", "polarity")


def prompt_from_row(row: object) -> Prompt:
    """A canonical row as a Prompt with a valid rubric."""
    check_values(row, "row")
    _refuse_plain(row)
    fields = _fields(row, allowed=_PROMPT_KEYS, where="row")
    messages = _messages(fields)
    if messages[-1].role != "user":
        raise ValueError(
            f"messages: the last role is {messages[-1].role!r}; a prompt ends with the user's turn"
        )
    rubric = _rubric(_required(fields, "rubric", where="row"))
    try:
        validate_rubric(rubric)
    except ValueError as error:
        raise ValueError(f"rubric: {error}") from error
    reference = fields.get("reference_answer")
    return Prompt(
        id=_text(_required(fields, "id", where="row"), "id"),
        messages=messages,
        rubric=rubric,
        source=_text(fields.get("source", ""), "source", empty=True),
        reference_answer=None
        if reference is None
        else _text(reference, "reference_answer", empty=True),
        extra=_mapping(fields.get("extra", {}), "extra"),
    )


def messages_from_sft_row(row: object) -> tuple[Message, ...]:
    """The messages of a supervised row; the last one is the assistant's answer to learn."""
    check_values(row, "row")
    messages = _messages(_fields(row, allowed=_SFT_KEYS, where="row"))
    if messages[-1].role != "assistant" or len(messages) < 2:
        raise ValueError(
            "messages: a supervised row is a prompt and, last, the assistant's answer; the roles "
            f"are {', '.join(message.role for message in messages)}"
        )
    return messages


def pair_from_row(row: object) -> tuple[str, tuple[Message, ...], str, str]:
    """Id, prompt, chosen and rejected answer of a preference pair; answers are plain text."""
    check_values(row, "row")
    fields = _fields(row, allowed=_PAIR_KEYS, where="row")
    messages = _messages(fields)
    if messages[-1].role == "assistant":
        raise ValueError(
            "messages: the last role is 'assistant'; give the prompt alone, the answers are chosen"
            " and rejected"
        )
    chosen, rejected = (
        _text(_required(fields, key, where="row"), key) for key in ("chosen", "rejected")
    )
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same text, which prefers nothing; drop it")
    return _text(_required(fields, "id", where="row"), "id"), messages, chosen, rejected


def row_from_prompt(prompt: Prompt) -> dict[str, Any]:
    """The canonical row of a prompt; defaults that carry no information are left out."""
    row: dict[str, Any] = {
        "id": prompt.id,
        "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
        "rubric": {
            "aggregation": prompt.rubric.aggregation,
            "criteria": [_criterion_row(criterion) for criterion in prompt.rubric.criteria],
        },
        "source": prompt.source,
    }
    if prompt.reference_answer is not None:
        row["reference_answer"] = prompt.reference_answer
    if prompt.extra:
        row["extra"] = dict(prompt.extra)
    return row


def _refuse_plain(row: object) -> None:
    """Rows as most data sets have them, with the command that makes rows to train on of them."""
    if not isinstance(row, Mapping) or row.get("messages") is not None:
        return
    name = next((name for name in _PLAIN_PROMPTS if isinstance(row.get(name), str)), None)
    if name is None:
        return
    lacks = ""
    if not any(row.get(key) for key in _PLAIN_RUBRICS):
        lacks = (
            '; it needs criteria too, and this row has none: add them as "rubric", a list of'
            ' statements such as ["It names the capital."] or of rules'
        )
    raise ValueError(
        f"row: it has {name!r} and no 'messages'; `herl data plain --input FILE --out FOLDER` turns"
        f" such rows into rows to train on{lacks}"
    )


def _criterion_row(criterion: Criterion) -> dict[str, Any]:
    row: dict[str, Any] = {"id": criterion.id, "kind": criterion.kind}
    if criterion.kind == "rule":
        row["check"] = criterion.check
    if criterion.kind == "rule" or criterion.params:
        row["params"] = dict(criterion.params)
    if criterion.description:
        row["description"] = criterion.description
    return row | {"weight": criterion.weight, "polarity": criterion.polarity}


def _rubric(value: object) -> Rubric:
    fields = _fields(value, allowed=("aggregation", "criteria"), where="rubric")
    aggregation = _choice(
        fields.get("aggregation", "explicit"), get_args(Aggregation), "rubric.aggregation"
    )
    items = _sequence(fields.get("criteria", []), "rubric.criteria")
    criteria = tuple(_criterion(item, f"rubric.criteria[{i}]") for i, item in enumerate(items))
    return Rubric(criteria=criteria, aggregation=cast(Aggregation, aggregation))


def _criterion(value: object, where: str) -> Criterion:
    fields = _fields(value, allowed=_CRITERION_KEYS, where=where)
    kind = _choice(_required(fields, "kind", where=where), ("rule", "judge"), f"{where}.kind")
    if kind == "rule":
        _required(fields, "check", where=where)
    weight = fields.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(f"{where}.weight is {_short(weight)}; it must be a number above 0")
    polarity = _choice(fields.get("polarity", "positive"), get_args(Polarity), f"{where}.polarity")
    params = _mapping(fields.get("params", {}), f"{where}.params")
    return Criterion(
        id=_text(_required(fields, "id", where=where), f"{where}.id"),
        kind=cast(Literal["rule", "judge"], kind),
        check=_text(fields.get("check", ""), f"{where}.check", empty=True),
        params={key: item for key, item in params.items() if item is not None},
        description=_text(fields.get("description", ""), f"{where}.description", empty=True),
        weight=float(weight),
        polarity=cast(Polarity, polarity),
    )


def _messages(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    items = _sequence(_required(fields, "messages", where="row"), "messages")
    if not items:
        raise ValueError("messages is empty; give at least one message")
    return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(items))


def _message(value: object, where: str) -> Message:
    fields = _fields(value, allowed=("role", "content"), where=where)
    role = _choice(_required(fields, "role", where=where), get_args(Role), f"{where}.role")
    content = _text(_required(fields, "content", where=where), f"{where}.content")
    return Message(role=cast(Role, role), content=content)


def _fields(value: object, *, allowed: Sequence[str], where: str) -> dict[str, Any]:
    """The non-null entries of a mapping without unknown keys."""
    fields = _mapping(value, where)
    for key in fields:
        if key not in allowed:
            near = get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(allowed)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
    return {key: item for key, item in fields.items() if item is not None}


def _required(fields: Mapping[str, Any], key: str, *, where: str) -> Any:
    if key not in fields:
        raise ValueError(f"{where}: the key {key!r} is missing or null")
    return fields[key]


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object with named keys, not {_short(value)}")
    return dict(value)


def _sequence(value: object, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} must be a list, not {_short(value)}")
    return list(value)


def _text(value: object, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, not {_short(value)}")
    if not empty and not value.strip():
        raise ValueError(f"{where} is empty")
    return value


def _choice(value: object, choices: Sequence[str], where: str) -> str:
    if value not in choices:
        raise ValueError(f"{where} is {_short(value)}; use one of {', '.join(choices)}")
    return cast(str, value)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
