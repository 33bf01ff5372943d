"""Markdown: heading levels, and quotes, bold text and bullets that go with them."""

from __future__ import annotations

import re
from collections.abc import Callable

from herl_megatron.rubrics.checks.muldimif.reading import (
    NUMBER,
    Limits,
    Rule,
    any_line,
    find_limits,
    known_number,
)

Heading = tuple[int, str]
"""Level and text."""
HeadingRule = Callable[[list[Heading]], bool]

_USES = re.compile(
    r"include|including|use|using|formatted|presented|organized|structured|feature|should be"
    r"|incorporate"
)
_LEVEL_COUNTS = tuple(
    (kind, rf"{words} {NUMBER} {unit}")
    for unit in ("heading levels?", "levels?")
    for kind, words in (
        ("least", "at least"),
        ("exact", "exactly"),
        ("most", "(?:at most|up to|a maximum of|under)"),
    )
)
_HEADINGS_AT_ALL = (
    "include headings",
    "includes headings",
    "use heading levels",
    "using heading levels",
    "presented under a separate heading",
    "separated with headings",
    "with headings",
)


def read_markdown(text: str) -> Rule:
    """The rule of a constraint on Markdown; ValueError if it asks for nothing it knows."""
    lower = text.lower()
    parts = [
        read
        for name, read in (
            ("block quotes", read_block_quotes(lower)),
            ("bold", _has_bold),
            ("bullet points", _has_bullets),
        )
        if name in lower
    ]
    headings = _read_headings(text)
    for_each = "each" in lower or "any" in lower
    if headings is None and not parts and not (for_each and "heading" in lower):
        raise ValueError("no Markdown is asked for that this rule knows")

    def rule(response: str) -> bool:
        found = _headings(response)
        if for_each:
            fits = bool(found) and all(headings is None or headings([one]) for one in found)
        else:
            fits = headings is None or headings(found)
        return fits and all(part(response) for part in parts)

    return rule


def _headings(response: str) -> list[Heading]:
    lines = [re.match(r"(#+)\s+(.*)", line.strip()) for line in response.split("\n")]
    return [(len(match.group(1)), match.group(2).strip()) for match in lines if match]


def _read_headings(text: str) -> HeadingRule | None:
    """The first reading that fits, from the special to the general."""
    lower = text.strip().lower().rstrip(".")
    return (
        _read_level_set(text, lower)
        or _read_title(text)
        or _read_level(lower)
        or _read_level_count(lower)
        or _read_position(lower)
        or _read_presence(lower)
    )


def _read_level_set(text: str, lower: str) -> HeadingRule | None:
    """Several levels that must all be there."""
    if re.search(
        r"include headings at two levels: main and sub|with a main heading and sub", lower
    ):
        return _levels_present({1, 2})
    if "include a single level 1 heading" in lower:
        return lambda headings: [level for level, _ in headings].count(1) == 1
    if re.search(r"structured using a minimum of two heading levels|headings at two levels", lower):
        if "include headings" in lower or "be structured" in lower:
            return _level_count(Limits(2, None))
    both = re.search(rf"use heading levels {NUMBER}\b and {NUMBER}\b", lower) or re.search(
        rf"use heading levels.*?level\s*{NUMBER}\b.*?level\s*{NUMBER}\b", lower
    )
    if both:
        return _levels_present({known_number(group) for group in both.groups()})
    if "must include" not in text and "should" not in text:
        return None
    for pattern in (rf"a heading level {NUMBER}\b", r"h(\d+)", rf"level {NUMBER}\b for"):
        if found := re.findall(pattern, lower):
            return _levels_present({known_number(group) for group in found})
    return None


def _read_title(text: str) -> HeadingRule | None:
    """A heading with this level and text."""
    match = re.search(
        rf"level {NUMBER} heading (?:titled|with the text) [\"'](.*?)[\"']", text, re.IGNORECASE
    )
    if match is None or "titled" not in text:
        return None
    wanted = (known_number(match.group(1)), match.group(2))
    return lambda headings: wanted in headings


def _read_level(lower: str) -> HeadingRule | None:
    """At least one heading of a level."""
    if not _USES.search(lower):
        return None
    match = (
        re.search(rf"(?:a|at least \d+) heading level {NUMBER}\b", lower)
        or re.search(rf"(?:a|at least one|{NUMBER[1:-1]}) level {NUMBER}\b heading", lower)
        or re.search(r"must use a heading level of h(\d+)", lower)
    )
    return _levels_present({known_number(match.group(1))}) if match else None


def _read_level_count(lower: str) -> HeadingRule | None:
    """How many different levels there are."""
    if not _USES.search(lower):
        return None
    limits = find_limits(lower, _LEVEL_COUNTS)
    return _level_count(limits) if limits else None


def _read_position(lower: str) -> HeadingRule | None:
    """The deepest level, or the first."""
    if match := re.search(rf"must (?:not exceed|be limited to)\s+(?:level\s+)?{NUMBER}\b", lower):
        deepest = known_number(match.group(1))
        return lambda headings: bool(headings) and max(headings)[0] <= deepest
    if match := re.search(rf"must begin with a level {NUMBER}\b heading", lower):
        first = known_number(match.group(1))
        return lambda headings: bool(headings) and headings[0][0] == first
    return None


def _read_presence(lower: str) -> HeadingRule | None:
    """A heading of a level, or of any."""
    if match := re.search(rf"use heading level {NUMBER}\b", lower):
        return _levels_present({known_number(match.group(1))})
    if any(words in lower for words in _HEADINGS_AT_ALL):
        return lambda headings: bool(headings)
    return None


def _levels_present(levels: set[int]) -> HeadingRule:
    return lambda headings: levels <= {level for level, _ in headings}


def _level_count(limits: Limits) -> HeadingRule:
    return lambda headings: limits.hold(len({level for level, _ in headings}))


def _has_bold(response: str) -> bool:
    return re.search(r"\*\*.*?\*\*|__.*?__", response) is not None


def _has_bullets(response: str) -> bool:
    return any_line(r"\s*[-*+]\s", response)


def read_block_quotes(lower: str) -> Rule:
    """Lines that start with `>`: as many as said, one, or all."""
    least = re.search(rf"{NUMBER} block quotes", lower) if "at least" in lower else None
    some = re.search(
        r"(?:use|using|using markdown|employ) block quotes|include a block quote|as a block quote",
        lower,
    )

    def rule(response: str) -> bool:
        lines = response.split("\n")
        quoted = sum(1 for line in lines if line.strip().startswith(">"))
        if least:
            return quoted >= known_number(least.group(1))
        return quoted > 0 if some else quoted == len(lines)

    return rule
