"""IFBench checks that count or weigh (`count:`, `ratio:`), with the benchmark's exact semantics."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from herl_megatron.rubrics.checks import nltk_tools
from herl_megatron.rubrics.checks.check_parameters import Count, Positive, Stripped, Text
from herl_megatron.rubrics.checks.registry import register
from herl_megatron.rubrics.checks.words import (
    bare,
    plain_words,
    sentences,
    without_punctuation,
    word_runs,
)

Percentage = Annotated[float, Field(ge=0, le=100)]

_CONJUNCTIONS = frozenset("and but for nor or so yet".split())
_PRONOUNS = frozenset(
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his "
    "himself she her hers herself it its itself they them their theirs themselves".split()
)
# The list that the prompts of `count:person_names` print.
_PERSON_NAMES = (
    "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander "
    "Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel "
    "Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David Hannah Christopher "
    "Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan"
).split()
_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
_OVERLAP_TOLERANCE = 2.0
_TIMES = (1, 2, 3, 5, 7)
"""How often each of five keywords is asked for."""


def _empty_range(*, min_words: int, max_words: int) -> str:
    return f"nothing is between {min_words} and {max_words}" if min_words > max_words else ""


@register(
    "ifbench/count:word_count_range",
    description="Write between {min_words} and {max_words} words.",
    pointless=_empty_range,
)
def word_count_range(response: str, *, min_words: Count, max_words: Count) -> bool:
    r"""Runs of word characters (`\w+`) within the range, ends included."""
    return min_words <= len(word_runs(response)) <= max_words


@register("ifbench/count:unique_word_count", description="Use at least {N} different words.")
def unique_word_count(response: str, *, N: Positive) -> bool:  # noqa: N803
    """Different lowercase words, punctuation at their ends aside (what is left may be empty)."""
    return len({bare(word) for word in response.lower().split()}) >= N


@register(
    "ifbench/count:conjunctions",
    description="Use at least {small_n} different coordinating conjunctions.",
)
def conjunctions(response: str, *, small_n: Positive) -> bool:
    """Different spellings of conjunctions: case and attached punctuation tell them apart."""
    found = {word for word in response.split() if bare(word).lower() in _CONJUNCTIONS}
    return len(found) >= small_n


@register(
    "ifbench/count:person_names",
    description="Mention at least {N} different names from the list of person names.",
)
def person_names(
    response: str,
    *,
    N: Annotated[int, Field(ge=1, le=len(_PERSON_NAMES))],  # noqa: N803
) -> bool:
    """How many of the fifty names occur, as substrings with their case."""
    return sum(1 for name in _PERSON_NAMES if name in response) >= N


@register("ifbench/count:numbers", description="Include exactly {N} numbers.")
def numbers(response: str, *, N: Count) -> bool:  # noqa: N803
    """Runs of digits after punctuation was deleted: 1,000 and 2-3 are one number each."""
    return len(re.findall(r"\d+", without_punctuation(response))) == N


@register(
    "ifbench/count:punctuation",
    description="Use every standard punctuation mark at least once: . , ! ? ; : and an "
    "interrobang (?! or !?).",
)
def punctuation(response: str) -> bool:
    """An interrobang, and the six marks in what remains without one of its spellings."""
    if not any(mark in response for mark in ("?!", "!?", "\u203d")):
        return False
    pair = "?!" if "?!" in response else "!?"
    rest = response.replace(pair, "", 1)
    return all(mark in rest for mark in ".,!?;:")


@register("ifbench/count:pronouns", description="Use at least {N} pronouns.")
def pronouns(response: str, *, N: Positive) -> bool:  # noqa: N803
    """Personal, possessive and reflexive pronouns; "it's" reads as "its" and counts."""
    words = plain_words(response.replace("/", " "))
    return sum(1 for word in words if word in _PRONOUNS) >= N


@register("ifbench/count:words_japanese", description="Write every {N}th word in Japanese.")
def words_japanese(response: str, *, N: Positive) -> bool:  # noqa: N803
    """A Japanese character in every N-th word, those of digits or punctuation alone aside."""
    every_nth = [bare(word) for word in response.split()[N - 1 :: N]]
    return all(_JAPANESE.search(word) for word in every_nth if word and not word.isdigit())


def _too_often(**keywords: str) -> str:
    """A keyword within another occurs whenever that one does."""
    words = [(word.lower(), count) for word, count in zip(keywords.values(), _TIMES, strict=True)]
    for outer, least in words:
        for inner, most in words:
            if outer.count(inner) * least > most:
                return f"{outer!r} {least} times gives more than {most} times {inner!r}"
    return ""


@register(
    "ifbench/count:keywords_multiple",
    description='Use "{keyword1}" once, "{keyword2}" twice, "{keyword3}" three times, '
    '"{keyword4}" five times and "{keyword5}" seven times.',
    pointless=_too_often,
)
def keywords_multiple(
    response: str,
    *,
    keyword1: Stripped,
    keyword2: Stripped,
    keyword3: Stripped,
    keyword4: Stripped,
    keyword5: Stripped,
) -> bool:
    """Exact counts of the keywords as substrings, without regard to case."""
    text = response.lower()
    keywords = (keyword1, keyword2, keyword3, keyword4, keyword5)
    return all(
        text.count(word.lower()) == count for word, count in zip(keywords, _TIMES, strict=True)
    )


@register(
    "ifbench/ratio:stop_words",
    description="Let stop words make up at most {percentage}% of the words.",
    requires=("nltk",),
    data=(nltk_tools.STOPWORDS,),
)
def stop_words(response: str, *, percentage: Percentage) -> bool:
    """Share of NLTK's English stop words among the words; text without words fails."""
    words = word_runs(response)
    if not words:
        return False
    stop = sum(1 for word in words if word.lower() in nltk_tools.stopwords())
    return stop / len(words) * 100 <= percentage


@register(
    "ifbench/ratio:sentence_type",
    description="Write twice as many declarative sentences as questions.",
)
def sentence_type(response: str) -> bool:
    """Sentences that end in a full stop against those that end in a question mark."""
    stops, questions, _ = _sentence_ends(response)
    return stops == 2 * questions


@register(
    "ifbench/ratio:sentence_balance",
    description="Use equally many sentences that end in a period, a question mark and an "
    "exclamation mark.",
)
def sentence_balance(response: str) -> bool:
    """Equal numbers of the three ends of sentences."""
    return len(set(_sentence_ends(response))) == 1


@register(
    "ifbench/ratio:sentence_words",
    description="Write exactly three sentences with the same number of characters and "
    "different words.",
)
def sentence_words(response: str) -> bool:
    """Three sentences of one length; the benchmark does not look at their words."""
    found = sentences(response)
    return len(found) == 3 and len({len(sentence) for sentence in found}) == 1


@register(
    "ifbench/ratio:overlap",
    description="Share {percentage}% (give or take 2%) of the character trigrams with this text: "
    "{reference_text}",
)
def overlap(response: str, *, reference_text: Text, percentage: Percentage) -> bool:
    """Share of the response's different character trigrams that the reference has."""
    mine, theirs = _trigrams(response), _trigrams(reference_text)
    if not mine:
        return False
    shared = len(mine & theirs) / len(mine) * 100
    return percentage - _OVERLAP_TOLERANCE <= shared <= percentage + _OVERLAP_TOLERANCE


def _sentence_ends(text: str) -> tuple[int, int, int]:
    """How many sentences end in `.`, `?` and `!`."""
    found = sentences(text)
    stops, questions, exclamations = (
        sum(1 for sentence in found if sentence.endswith(mark)) for mark in ".?!"
    )
    return stops, questions, exclamations


def _trigrams(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)}
