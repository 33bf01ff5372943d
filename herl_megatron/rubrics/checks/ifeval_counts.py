"""IFEval checks about words and counts, with the benchmark's exact semantics.

Keywords are regular expressions searched as substrings without regard to case, as in the
benchmark; only forbidden words stop at word boundaries.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from herl_megatron.rubrics.checks import nltk_tools
from herl_megatron.rubrics.checks.registry import Count, Pattern, Positive, Relation, register
from herl_megatron.rubrics.checks.words import word_runs

Letter = Annotated[str, Field(min_length=1, max_length=1)]


def _compare(count: int, relation: Relation, bound: int) -> bool:
    return count >= bound if relation == "at least" else count < bound


@register("ifeval/keywords:existence", description="Include the words: {keywords}.")
def keywords_existence(
    response: str, *, keywords: Annotated[list[Pattern], Field(min_length=1)]
) -> bool:
    """Every keyword occurs."""
    return all(re.search(keyword, response, re.IGNORECASE) for keyword in keywords)


@register(
    "ifeval/keywords:frequency",
    description='Use the word "{keyword}" {relation} {frequency} times.',
)
def keywords_frequency(
    response: str, *, keyword: Pattern, frequency: Count, relation: Relation
) -> bool:
    """The keyword's non-overlapping occurrences, compared with `frequency`."""
    hits = sum(1 for _ in re.finditer(keyword, response, re.IGNORECASE))
    return _compare(hits, relation, frequency)


@register("ifeval/keywords:forbidden_words", description="Do not use the words: {forbidden_words}.")
def forbidden_words(
    response: str, *, forbidden_words: Annotated[list[Pattern], Field(min_length=1)]
) -> bool:
    """None of the words occurs as a whole word."""
    return not any(re.search(rf"\b{word}\b", response, re.IGNORECASE) for word in forbidden_words)


def _no_letter(*, letter: str, let_frequency: int, let_relation: Relation) -> str:
    """Two rows of the benchmark count `#` and `!`, for which its code draws a random letter."""
    return "" if letter.isascii() and letter.isalpha() else f"{letter!r} is not a letter"


@register(
    "ifeval/keywords:letter_frequency",
    description='Use the letter "{letter}" {let_relation} {let_frequency} times.',
    unreadable=_no_letter,
)
def letter_frequency(
    response: str, *, letter: Letter, let_frequency: Count, let_relation: Relation
) -> bool:
    """Occurrences of a letter of either case. The benchmark draws a random letter where the
    data names something else; here such a criterion is left out.
    """
    return _compare(response.lower().count(letter.lower()), let_relation, let_frequency)


@register("ifeval/length_constraints:number_words", description="Use {relation} {num_words} words.")
def number_words(response: str, *, num_words: Count, relation: Relation) -> bool:
    r"""Runs of word characters (`\w+`), compared with `num_words`."""
    return _compare(len(word_runs(response)), relation, num_words)


@register(
    "ifeval/length_constraints:number_sentences",
    description="Write {relation} {num_sentences} sentences.",
    requires=("nltk",),
    data=(nltk_tools.PUNKT,),
)
def number_sentences(response: str, *, num_sentences: Count, relation: Relation) -> bool:
    """Sentences by NLTK's Punkt model over the whole text, compared with `num_sentences`."""
    return _compare(len(nltk_tools.split_sentences(response)), relation, num_sentences)


@register(
    "ifeval/change_case:capital_word_frequency",
    description="Use {capital_relation} {capital_frequency} words in all capital letters.",
    requires=("nltk",),
)
def capital_word_frequency(
    response: str, *, capital_frequency: Count, capital_relation: Relation
) -> bool:
    """NLTK tokens in upper case: I and A count, a hyphenated word is one."""
    capitals = sum(1 for token in nltk_tools.tokens(response) if token.isupper())
    return _compare(capitals, capital_relation, capital_frequency)


@register(
    "ifeval/length_constraints:number_paragraphs",
    description="Write exactly {num_paragraphs} paragraphs separated by ***.",
)
def number_paragraphs(response: str, *, num_paragraphs: Count) -> bool:
    """Pieces between `***`; a blank one fails unless it is the first or the last."""
    pieces = re.split(r"\s?\*\*\*\s?", response)
    blank = [not piece.strip() for piece in pieces]
    return not any(blank[1:-1]) and blank.count(False) == num_paragraphs


@register(
    "ifeval/length_constraints:nth_paragraph_first_word",
    description="Write {num_paragraphs} paragraphs separated by blank lines; paragraph "
    '{nth_paragraph} must start with the word "{first_word}".',
)
def nth_paragraph_first_word(
    response: str,
    *,
    num_paragraphs: Count,
    nth_paragraph: Positive,
    first_word: str,
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
def number_placeholders(response: str, *, num_placeholders: Count) -> bool:
    """Pieces in square brackets on one line."""
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


@register(
    "ifeval/detectable_format:number_bullet_lists",
    description="Use exactly {num_bullets} bullet points.",
)
def number_bullet_lists(response: str, *, num_bullets: Count) -> bool:
    """Lines that start with one `*` (not two) or with `-`."""
    stars = re.findall(r"^\s*\*[^\*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


@register(
    "ifeval/detectable_format:number_highlighted_sections",
    description="Highlight at least {num_highlights} sections with *stars*.",
)
def number_highlighted_sections(response: str, *, num_highlights: Count) -> bool:
    """Non-blank pieces between single stars, plus those between double stars."""
    single = re.findall(r"\*([^\n*]*)\*", response)
    double = re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(1 for piece in single + double if piece.strip()) >= num_highlights


@register(
    "ifeval/detectable_format:multiple_sections",
    description='Write at least {num_sections} sections, each starting with "{section_spliter}" '
    "and its number.",
)
def multiple_sections(response: str, *, section_spliter: Pattern, num_sections: Count) -> bool:
    """Pieces after a splitter and a number; case counts."""
    pieces = re.split(rf"\s?{section_spliter}\s?\d+\s?", response)
    return len(pieces) - 1 >= num_sections
