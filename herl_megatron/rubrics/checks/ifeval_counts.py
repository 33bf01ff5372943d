"""IFEval checks about words and counts, with the benchmark's exact semantics.

Keywords are regular expressions searched as substrings without regard to case, as in the
benchmark; only forbidden words stop at word boundaries.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from herl_megatron.rubrics.checks import nltk_tools
from herl_megatron.rubrics.checks.check_parameters import (
    Count,
    Pattern,
    Positive,
    Relation,
    Splitter,
    StrippedPattern,
    Text,
    WordPattern,
    compare,
    pointless,
)
from herl_megatron.rubrics.checks.registry import register
from herl_megatron.rubrics.checks.words import word_runs

Letter = Annotated[str, Field(min_length=1, max_length=1)]


@register("ifeval/keywords:existence", description="Include the words: {keywords}.")
def keywords_existence(
    response: str, *, keywords: Annotated[list[Pattern], Field(min_length=1)]
) -> bool:
    """Every keyword occurs."""
    return all(re.search(keyword, response, re.IGNORECASE) for keyword in keywords)


def _any_frequency(*, keyword: str, frequency: int, relation: Relation) -> str:
    return pointless(relation, frequency, f"occurrences of {keyword!r}")


@register(
    "ifeval/keywords:frequency",
    description='Use the word "{keyword}" {relation} {frequency} times.',
    pointless=_any_frequency,
)
def keywords_frequency(
    response: str, *, keyword: StrippedPattern, frequency: Count, relation: Relation
) -> bool:
    """The keyword's non-overlapping occurrences, compared with `frequency`."""
    hits = sum(1 for _ in re.finditer(keyword, response, re.IGNORECASE))
    return compare(hits, relation, frequency)


@register("ifeval/keywords:forbidden_words", description="Do not use the words: {forbidden_words}.")
def forbidden_words(
    response: str, *, forbidden_words: Annotated[list[WordPattern], Field(min_length=1)]
) -> bool:
    """None of the words occurs as a whole word."""
    return not any(re.search(rf"\b{word}\b", response, re.IGNORECASE) for word in forbidden_words)


def _no_letter(*, letter: str, let_frequency: int, let_relation: Relation) -> str:
    """Two rows of the benchmark count `#` and `!`, for which its code draws a random letter."""
    return "" if letter.isascii() and letter.isalpha() else f"{letter!r} is not a letter"


def _any_letters(*, letter: str, let_frequency: int, let_relation: Relation) -> str:
    return pointless(let_relation, let_frequency, f"letters {letter!r}")


@register(
    "ifeval/keywords:letter_frequency",
    description='Use the letter "{letter}" {let_relation} {let_frequency} times.',
    unreadable=_no_letter,
    pointless=_any_letters,
)
def letter_frequency(
    response: str, *, letter: Letter, let_frequency: Count, let_relation: Relation
) -> bool:
    """Occurrences of a letter of either case. The benchmark draws a random letter where the
    data names something else; here such a criterion is left out.
    """
    return compare(response.lower().count(letter.lower()), let_relation, let_frequency)


def _any_words(*, num_words: int, relation: Relation) -> str:
    return pointless(relation, num_words, "words")


def _any_sentences(*, num_sentences: int, relation: Relation) -> str:
    return pointless(relation, num_sentences, "sentences")


def _any_capitals(*, capital_frequency: int, capital_relation: Relation) -> str:
    return pointless(capital_relation, capital_frequency, "words in capital letters")


@register(
    "ifeval/length_constraints:number_words",
    description="Use {relation} {num_words} words.",
    pointless=_any_words,
)
def number_words(response: str, *, num_words: Count, relation: Relation) -> bool:
    r"""Runs of word characters (`\w+`), compared with `num_words`."""
    return compare(len(word_runs(response)), relation, num_words)


@register(
    "ifeval/length_constraints:number_sentences",
    description="Write {relation} {num_sentences} sentences.",
    requires=("nltk",),
    data=(nltk_tools.PUNKT,),
    pointless=_any_sentences,
)
def number_sentences(response: str, *, num_sentences: Count, relation: Relation) -> bool:
    """Sentences by NLTK's Punkt model over the whole text, compared with `num_sentences`."""
    return compare(len(nltk_tools.split_sentences(response)), relation, num_sentences)


@register(
    "ifeval/change_case:capital_word_frequency",
    description="Use {capital_relation} {capital_frequency} words in all capital letters.",
    requires=("nltk",),
    pointless=_any_capitals,
)
def capital_word_frequency(
    response: str, *, capital_frequency: Count, capital_relation: Relation
) -> bool:
    """NLTK tokens in upper case: I and A count, a hyphenated word is one."""
    capitals = sum(1 for token in nltk_tools.tokens(response) if token.isupper())
    return compare(capitals, capital_relation, capital_frequency)


@register(
    "ifeval/length_constraints:number_paragraphs",
    description="Write exactly {num_paragraphs} paragraphs separated by ***.",
)
def number_paragraphs(response: str, *, num_paragraphs: Count) -> bool:
    """Pieces between `***`; a blank one fails unless it is the first or the last."""
    pieces = re.split(r"\s?\*\*\*\s?", response)
    blank = [not piece.strip() for piece in pieces]
    return not any(blank[1:-1]) and blank.count(False) == num_paragraphs


def _no_such_paragraph(*, num_paragraphs: int, nth_paragraph: int, first_word: str) -> str:
    if nth_paragraph > num_paragraphs:
        return f"there is no paragraph {nth_paragraph} of {num_paragraphs}"
    if re.search(r"[.,?!'\"\s]", first_word):
        return f"first_word {first_word!r} is no word: one ends before a mark or a blank"
    return ""


@register(
    "ifeval/length_constraints:nth_paragraph_first_word",
    description="Write {num_paragraphs} paragraphs separated by blank lines; paragraph "
    '{nth_paragraph} must start with the word "{first_word}".',
    pointless=_no_such_paragraph,
)
def nth_paragraph_first_word(
    response: str,
    *,
    num_paragraphs: Count,
    nth_paragraph: Positive,
    first_word: Text,
) -> bool:
    """Paragraph count (blank ones aside) and the first word of one of them, blank ones included
    in its number; the word loses leading quotes and ends at punctuation.
    """
    paragraphs = response.split("\n\n")
    filled = sum(1 for paragraph in paragraphs if paragraph.strip())
    if filled != num_paragraphs or nth_paragraph > len(paragraphs):
        return False
    words = paragraphs[nth_paragraph - 1].split()
    if not words:
        return False
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0]
    return word.lower() == first_word.lower()


@register(
    "ifeval/detectable_content:number_placeholders",
    description="Include at least {num_placeholders} placeholders in square brackets.",
)
def number_placeholders(response: str, *, num_placeholders: Positive) -> bool:
    """Pieces in square brackets on one line."""
    found = sum(map(_bracketed, response.split("\n")))
    return found >= num_placeholders


def _bracketed(line: str) -> int:
    """How often `[` is followed by `]`, each counted once, in time that grows with the line."""
    found = at = 0
    while (opened := line.find("[", at)) >= 0 and (closed := line.find("]", opened)) >= 0:
        found, at = found + 1, closed + 1
    return found


@register(
    "ifeval/detectable_format:number_bullet_lists",
    description="Use exactly {num_bullets} bullet points.",
)
def number_bullet_lists(response: str, *, num_bullets: Count) -> bool:
    """Lines that start with one `*` (not two) or with `-`."""
    stars = re.findall(r"^[^\S\n]*\*[^\*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


@register(
    "ifeval/detectable_format:number_highlighted_sections",
    description="Highlight at least {num_highlights} sections with *stars*.",
)
def number_highlighted_sections(response: str, *, num_highlights: Positive) -> bool:
    """Non-blank pieces between single stars, plus those between double stars."""
    single = re.findall(r"\*([^\n*]*)\*", response)
    double = re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(1 for piece in single + double if piece.strip()) >= num_highlights


@register(
    "ifeval/detectable_format:multiple_sections",
    description='Write at least {num_sections} sections, each starting with "{section_spliter}" '
    "and its number.",
)
def multiple_sections(response: str, *, section_spliter: Splitter, num_sections: Positive) -> bool:
    """Pieces after a splitter and a number; case counts."""
    pieces = re.split(rf"\s?{section_spliter}\s?\d+\s?", response)
    return len(pieces) - 1 >= num_sections
