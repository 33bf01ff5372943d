"""Rules of few constraints: JSON depth, XML attributes, openings, sources, lists and blurbs."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from herl_megatron.rubrics.checks.muldimif.keywords import occurrences
from herl_megatron.rubrics.checks.muldimif.reading import (
    NUMBER,
    Limits,
    Rule,
    any_line,
    find_limits,
    known_number,
)

_DEPTH_EXACT = (
    ("exact", rf"exactly {NUMBER} levels?"),
    ("exact", rf"nesting level of {NUMBER}"),
    ("exact", rf"object nesting levels must be {NUMBER}"),
    ("exact", rf"be limited to {NUMBER} levels of nesting"),
)
_DEPTH_MOST = (
    rf"(?:not exceed|no more than|maximum of|not exceeding) {NUMBER} (?:levels?|nesting levels"
    r"|object nesting levels)",
    rf"levels (?:must not exceed|not exceeding) {NUMBER}",
    rf"and at most {NUMBER}",
)
_DEPTH_LEAST = (
    rf"at least {NUMBER} levels? (?:of nesting|deep)",
    rf"json object with at least {NUMBER} levels?",
    rf"and at least {NUMBER}",
)
_ATTRIBUTES = (
    ("most", rf"(?:no more than|not exceed) {NUMBER}\b"),
    ("exact", rf"limit the number of attributes to {NUMBER}\b"),
    ("exact", rf"(?:must be|must have|must include) exactly {NUMBER}\b"),
    ("least", rf"at least {NUMBER} attributes?"),
)
_BLURB_CHARACTERS = 200


def read_json(text: str) -> Rule:
    """Bounds on how deep JSON is nested; ValueError if the text has none."""
    text = re.sub(r"[^\w\s]", "", text.lower())
    limits = find_limits(text, _DEPTH_EXACT)
    if limits is None:
        most = [known_number(n) for pattern in _DEPTH_MOST for n in re.findall(pattern, text)]
        least = [known_number(n) for pattern in _DEPTH_LEAST for n in re.findall(pattern, text)]
        if not most and not least:
            raise ValueError("no number of nesting levels")
        limits = Limits(max(least, default=None), min(most, default=None))
    bounds = limits

    def rule(response: str) -> bool:
        fenced = re.search(r"```json(.*?)```", response, re.DOTALL)
        try:
            data = json.loads(fenced.group(1).strip() if fenced else response)
        except (ValueError, RecursionError):
            return False
        return data is not None and bounds.hold(_depth(data))

    return rule


def _depth(data: Any) -> int:
    """Objects and lists around the innermost value; an empty one adds nothing."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return max((_depth(value) + 1 for value in inner), default=0)


def read_others(text: str) -> Rule:
    """The rule of a constraint on content or form of a rarer kind; ValueError if it is unknown."""
    lower = text.lower()
    if "Each example must start with" in text and (quoted := re.search("'([^']+)'", text)):
        opening = quoted.group(1)  # Looked for anywhere: nothing marks where an example starts.
        return lambda response: opening in response
    readers = (
        _read_attributes,
        _read_opening,
        _read_sources,
        _read_lists,
        _read_rows,
        _read_size,
    )
    for read in readers:
        rule = read(lower)
        if rule is not None:
            return rule
    if rule := _read_phrases(text):
        return rule
    raise ValueError("no requirement that this rule knows")


def _read_opening(lower: str) -> Rule | None:
    match = re.search(
        r"start identifier(?: must be|:).*?\s'([^']+)'"
        r"|(?:start|begin) (?:with|by) the (?:identifier|phrase) '?([^']+)'?",
        lower,
    )
    if match is None:
        return None
    opening = match.group(1) or match.group(2)
    return lambda response: response.lstrip(" #").lower().startswith(opening)


def _read_sources(lower: str) -> Rule | None:
    patterns = (
        (r"apa format", r"\(\s*\w+,\s*\d{4}\s*\)"),
        (r"sources that are cited", r"(?s)(?=.*\[\d+\]).*Sources:\s*[^\n]+$"),
        (r"in-text citations", r"\[\d+\]|\([A-Za-z]+, \d{4}\)"),
        (r"end identifier: sources|by citing your sources", r"Sources:\s*.+$"),
        (r"quotes from the", "[\"'\u201c\u201d\u2018\u2019]"),
    )
    for words, pattern in patterns:
        if re.search(words, lower):
            return partial(_found, re.compile(pattern))
    if match := re.search(rf"at least {NUMBER} references", lower):
        least = known_number(match.group(1))
        reference = re.compile(r"\[\d+\]|\([A-Za-z]+, \d{4}\)")
        return lambda response: len(reference.findall(response)) >= least
    return None


def _found(pattern: re.Pattern[str], response: str) -> bool:
    return pattern.search(response.strip()) is not None


def _read_lists(lower: str) -> Rule | None:
    if "no bullet points" in lower:
        return lambda response: not any_line(r"\s*[-*]", response)
    if re.search(r"(?:listed|structured) as bullet points", lower):
        return lambda response: any_line(r"\s*[-*]", response)
    if re.search(r"no lists|no number points", lower):
        return lambda response: not any_line(r"\s*\d+\.", response)
    if "block quotes" in lower:
        return lambda response: bool(any_line(">", response) or "<blockquote>" in response.lower())
    return None


def _read_rows(lower: str) -> Rule | None:
    """Rows of tables in Markdown (headers among them) and HTML."""
    match = re.search(rf"(?:no more than|limited to a maximum of) {NUMBER} rows", lower)
    if match is None:
        return None
    most = known_number(match.group(1))

    def rule(response: str) -> bool:
        rows = re.findall(r"^\|.*\|$", response, re.MULTILINE)
        data = [row for row in rows if not re.match(r"\|(\s*-+\s*\|)+$", row)]
        return max(len(data), response.lower().count("<tr>")) <= most

    return rule


def _read_phrases(text: str) -> Rule | None:
    """Phrases that must occur."""
    if match := re.search(r"must start with the letter '([A-Za-z])'", text, re.IGNORECASE):
        word = re.compile(rf"\b{match.group(1).upper()}[a-zA-Z]*\b")
        return lambda response: word.search(response) is not None  # nothing marks the name
    if match := re.search(r"must include '(.*?)'", text, re.IGNORECASE):
        keyword = match.group(1)
        return lambda response: occurrences(keyword, response) > 0
    if match := re.search(r"must mention (.+) and (the .+)", text, re.IGNORECASE):
        phrases = match.groups()
        return lambda response: all(phrase in response for phrase in phrases)
    return None


def _read_size(lower: str) -> Rule | None:
    if "short blurb" in lower or "short and simple" in lower:
        return lambda response: len(response) <= _BLURB_CHARACTERS
    if "at medium length" in lower:
        return lambda response: _BLURB_CHARACTERS < len(response) <= 2 * _BLURB_CHARACTERS
    if "a paragraph long" in lower:
        return lambda response: "\n" not in response
    if match := re.search(rf"maximum of {NUMBER} words", lower):
        most = known_number(match.group(1))
        return lambda response: len(response.split()) <= most
    return None


def _read_attributes(lower: str) -> Rule | None:
    limits = find_limits(lower, _ATTRIBUTES) if "attribute" in lower else None
    if limits is None:
        return None
    tag = re.compile(r"<\s*[a-zA-Z_:][\w:.-]*\s*(?:\s+[a-zA-Z_:][\w:.-]*=['\"][^'\"]*['\"])*\s*/?>")
    attribute = re.compile(r"\w+=[\"'][^\"']*[\"']")
    bounds = limits

    def rule(response: str) -> bool:
        if "```xml" in response:
            fenced = re.search(r"```xml(.*?)```", response, re.DOTALL)
            if fenced is None:
                return False
            response = fenced.group(1)
        return all(bounds.hold(len(attribute.findall(one))) for one in tag.findall(response))

    return rule
