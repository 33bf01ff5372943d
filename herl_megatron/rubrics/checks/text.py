"""Our own checks on plain text, for rubrics that need no benchmark parity.

Keywords here are what they are, `$5`, `C++` and `.NET` too; those of `ifeval/` are regular
expressions, as in the benchmark.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from herl_megatron.rubrics.checks.check_parameters import (
    Count,
    Relation,
    Stripped,
    compare,
    pointless,
)
from herl_megatron.rubrics.checks.ifeval_format import Language, detected_language
from herl_megatron.rubrics.checks.registry import register

Keywords = Annotated[list[Stripped], Field(min_length=1)]


def _occurrences(keyword: str, text: str, *, match_case: bool) -> int:
    """Of the keyword itself, not as a part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", keyword) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", keyword) else ""
    pattern = before + re.escape(keyword) + after
    return len(re.findall(pattern, text, 0 if match_case else re.IGNORECASE))


@register("text/keywords", description="Include the words: {keywords}.")
def keywords(response: str, *, keywords: Keywords, match_case: bool = False) -> bool:
    """Every keyword occurs, letter for letter, as a whole word."""
    return all(_occurrences(word, response, match_case=match_case) for word in keywords)


@register("text/forbidden_words", description="Do not use the words: {forbidden_words}.")
def forbidden_words(response: str, *, forbidden_words: Keywords, match_case: bool = False) -> bool:
    """None of the words occurs, letter for letter, as a whole word."""
    return not any(_occurrences(word, response, match_case=match_case) for word in forbidden_words)


def _any_frequency(*, keyword: str, frequency: int, relation: Relation, match_case: bool) -> str:
    return pointless(relation, frequency, f"occurrences of {keyword!r}")


@register(
    "text/keyword_frequency",
    description='Use the word "{keyword}" {relation} {frequency} times.',
    pointless=_any_frequency,
)
def keyword_frequency(
    response: str,
    *,
    keyword: Stripped,
    frequency: Count,
    relation: Relation,
    match_case: bool = False,
) -> bool:
    """How often the keyword occurs, letter for letter, as a whole word."""
    count = _occurrences(keyword, response, match_case=match_case)
    return compare(count, relation, frequency)


@register(
    "text/language",
    description="Write the whole response in the language with the code {language}.",
    requires=("langdetect",),
)
def language(response: str, *, language: Language) -> bool:
    """The language by langdetect; text without letters is in none (in `ifeval/` it is in any)."""
    return detected_language(response) == language


@register("text/all_uppercase", description="Use only capital letters.")
def all_uppercase(response: str) -> bool:
    """At least one letter, and every cased letter is upper case."""
    return response.isupper()


@register("text/all_lowercase", description="Use only lowercase letters.")
def all_lowercase(response: str) -> bool:
    """At least one letter, and every cased letter is lower case."""
    return response.islower()
