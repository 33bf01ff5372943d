"""Types of checks' parameters, and what makes a requirement that nobody, or everybody, meets.

Such a requirement is a mistake in its row: it would pay every response alike.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

Relation = Literal["at least", "less than"]
"""How a count is compared: >= or strictly <."""
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("a blank text says nothing, so every response would do, or none")
    return text


def compilable(pattern: str) -> None:
    """Raise ValueError for what is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def _pattern(text: str) -> str:
    compilable(text)
    if re.match(text, ""):
        raise ValueError(f"{text!r} is found in every text, as it matches nothing at all")
    return text


def _between_boundaries(text: str) -> str:
    compilable(rf"\b{text}\b")
    return text


def _before_a_number(text: str) -> str:
    compilable(rf"\s?{text}\s?\d+\s?")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
"""Any text but a blank one."""
Stripped = Annotated[Text, AfterValidator(str.strip)]
"""White space around it does not count, as in the benchmarks."""
Pattern = Annotated[Text, AfterValidator(_pattern)]
"""Used as a regular expression, as the data sets do with keywords."""
StrippedPattern = Annotated[Stripped, AfterValidator(_pattern)]
WordPattern = Annotated[Text, AfterValidator(_between_boundaries)]
"""A regular expression between word boundaries."""
Splitter = Annotated[Stripped, AfterValidator(_before_a_number)]
"""A regular expression before a number."""


def compare(count: int, relation: Relation, bound: int) -> bool:
    """`at least`: count >= bound; `less than`: count < bound."""
    return count >= bound if relation == "at least" else count < bound


def pointless(relation: Relation, bound: int, what: str) -> str:
    """Why a comparison of a count with `bound` is met by all or none, or the empty string."""
    if bound:
        return ""
    return (
        f"every response has at least 0 {what}"
        if relation == "at least"
        else f"no response has less than 0 {what}"
    )


def token_problem(keyword: str) -> str:
    """Why no token of a text can be the keyword, or the empty string."""
    return f"{keyword!r} is several words, no single one" if len(keyword.split()) > 1 else ""
