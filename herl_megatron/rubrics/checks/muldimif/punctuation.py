"""Punctuation: the mark at the end of the text, or of each of its sentences, cells or bullets."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from herl_megatron.rubrics.checks import nltk_tools
from herl_megatron.rubrics.checks.libraries import library_problem
from herl_megatron.rubrics.checks.muldimif.reading import Rule

_MARKS = {"period": ".", "question mark": "?", "exclamation mark": "!", "semicolon": ";"}
_NAMES = re.compile(r"\b(period|question mark|exclamation mark|semicolon|punctuation mark)s?\b")
_NEGATED = re.compile(r"\b(must not|avoid|exclude|not end with|do not use)\b")
_WITH_SUFFIX = re.compile(
    r"(period|question mark|exclamation mark|semicolon) followed by a `([^`]+)`"
)


def read_punctuation(text: str) -> Rule:
    """The rule of a constraint on punctuation; ValueError if it names no mark."""
    text = text.strip().lower().rstrip(".")
    if "bullet point" in text:
        return _read_bullets(text)
    pieces = _read_scope(text)
    negated = _NEGATED.search(text) is not None
    endings = _endings(text)

    def rule(response: str) -> bool:
        found = pieces(response.strip())
        if not all(found):
            return negated
        return all(piece.endswith(endings) != negated for piece in found)

    return rule


def _endings(text: str) -> tuple[str, ...]:
    if special := _WITH_SUFFIX.search(text):
        return (_MARKS[special.group(1)] + special.group(2),)
    names = _NAMES.findall(text)
    if "punctuation mark" in names:
        return tuple(string.punctuation)
    if not names:
        raise ValueError("no punctuation mark is named")
    return tuple(_MARKS[name] for name in names)


def _read_scope(text: str) -> Callable[[str], list[str]]:
    """Which pieces of the (stripped) response the constraint speaks of."""
    if "table" in text or "cell" in text:
        return _cells
    if "paragraph" in text or "section" in text:
        return lambda response: [line.strip() for line in response.split("\n") if line.strip()]
    # The benchmark looks for these letters anywhere, also inside other words.
    if any(word in text for word in ("each", "any", "all")):
        _need_punkt()
        return nltk_tools.split_sentences
    return lambda response: [response]


def _cells(response: str) -> list[str]:
    rows = response.split("\n")
    body = rows[2:] if len(rows) > 1 else rows
    cells = [cell.strip() for row in body for cell in re.split(r"\s*\|\s*", row.strip("|"))]
    return [cell for cell in cells if cell.strip("-")]


def _read_bullets(text: str) -> Rule:
    _need_punkt()
    named = next((mark for name, mark in _MARKS.items() if name in text), None)
    endings = (named,) if named else tuple(string.punctuation)

    def rule(response: str) -> bool:
        bullets = re.findall("^[-*\u2022]\\s.*$", response.strip(), re.MULTILINE)
        return all(
            sentence.strip().endswith(endings)
            for bullet in bullets
            for sentence in nltk_tools.split_sentences(bullet)
        )

    return rule


def _need_punkt() -> None:
    if problem := library_problem(nltk_tools.PUNKT):
        raise ValueError(problem)
