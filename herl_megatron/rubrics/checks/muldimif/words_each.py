"""Words of each element: bounds that hold for every cell, item or line of a response."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from herl_megatron.rubrics.checks.muldimif.reading import (
    NUMBER,
    Limits,
    Rule,
    bullet_items,
    find_limits,
    layout,
    numbered_lines,
)

_LIMITS = (
    ("range", rf"between {NUMBER} and {NUMBER} words"),
    ("range", rf"range: {NUMBER}-{NUMBER} words"),
    ("least", rf"at least {NUMBER} words"),
    ("least", rf"a minimum (?:length )?of {NUMBER} words"),
    ("most", rf"at most {NUMBER} words"),
    ("exact", rf"exactly {NUMBER} words"),
    ("most", rf"(?:no more than|not exceed) {NUMBER} words"),
    ("most", rf"a maximum (?:length )?of {NUMBER} words"),
    ("most", rf"(?:limit of|not exceeding|less than) {NUMBER} words"),
)
_TARGET = re.compile(
    r"(?:each entry in the|each|the)\s+(.+?)\s+(?:is|in the table|column|must|consists of"
    r"|contains?|should|have)"
)


def read_words_of_each(text: str) -> Rule:
    """The rule of a constraint on the words of each element; ValueError if it has no bound."""
    text = text.lower()
    if "each word must be" in text:
        return _read_characters(text)
    limits = find_limits(text, _LIMITS)
    if limits is None:
        raise ValueError("no number of words of each element")
    match = _TARGET.search(text)
    target = match.group(1).replace('"', "").replace("'", "") if match else None

    def rule(response: str) -> bool:
        elements = _elements(response, target)
        return bool(elements) and all(limits.hold(len(element.split())) for element in elements)

    return rule


def _read_characters(text: str) -> Rule:
    match = re.search(r"must be (at most|at least) (\d+) characters", text)
    if match is None:
        raise ValueError("no number of characters of each word")
    bound = int(match.group(2))
    limits = Limits(None, bound) if match.group(1) == "at most" else Limits(bound, None)
    return lambda response: all(limits.hold(len(word)) for word in response.split(" "))


def _elements(response: str, target: str | None) -> list[str]:
    kind = layout(response)
    if kind == "table":
        return _cells(response, target or "cells")
    if kind == "json":
        return _json_values(response, target)
    if kind == "numbered":
        return [
            line.split(":", 1)[-1].split(".", 1)[-1].strip() for line in numbered_lines(response)
        ]
    if kind == "bullet":
        return bullet_items(response)
    return [line.strip().lstrip("#").strip() for line in response.split("\n") if _is_body(line)]


def _is_body(line: str) -> bool:
    """A line that is no blank, no table row and no heading ending in a colon."""
    line = line.strip()
    heading = line.strip("*#'\"").endswith(":")
    return bool(line) and not heading and not re.match(r"\|.*\|$", line)


def _json_values(response: str, target: str | None) -> list[str]:
    try:
        data = json.loads(response)
    except (ValueError, RecursionError):
        return []
    if target is None or not isinstance(data, dict):
        return []
    if "entry" in target:
        return [str(value) for value in data.values()]
    return [str(data.get(target.split()[-1], ""))]


def _cells(response: str, target: str) -> list[str]:
    """The cells below headers that name the target, else every cell."""
    lines = [line.strip() for line in response.split("\n")]
    rows = [line for line in lines if line.startswith("|")]
    is_rule = [re.fullmatch(r"[\s|*-]+", row) is not None for row in rows]
    if True not in is_rule:
        return _cells_of(rows)
    first = is_rule.index(True)
    headers = _cells_of(rows[:first])
    if not headers:
        return []
    below = zip(rows[first:], is_rule[first:], strict=True)
    body = _cells_of([row for row, ruled in below if not ruled])
    # Rows are cut by the number of headers: an empty cell shifts those after it.
    whole = len(body) - len(body) % len(headers)
    chosen = [
        value
        for index, value in enumerate(body[:whole])
        if target in (header := headers[index % len(headers)]).lower()
        and header.lower() != value.lower()
    ]
    return chosen or headers + body


def _cells_of(rows: Sequence[str]) -> list[str]:
    """What stands between the bars of a table's rows, empty cells left out."""
    return [cell.strip() for row in rows for cell in row[1:-1].split("|") if cell.strip()]
