"""Ways to cut text into words and sentences that the benchmark checks share."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

import regex  # type: ignore[import-untyped]

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_EDGE = string.punctuation + " "

# Private-use characters: a dot that ends no sentence, and the place where a sentence ends.
_DOT, _END = "\ue000", "\ue001"
_OPENERS = (
    r"(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He\s|She\s|It\s|They\s|Their\s|Our\s|We\s|But\s|However\s"
    r"|That\s|This\s|Wherever)"
)
# Applied in this order; each knows one use of dots. IFBench's splitter, rule by rule.
_DOT_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(Mr|St|Mrs|Ms|Dr)\.", rf"\1{_DOT}"),
    (r"\.(com|net|org|io|gov|edu|me)", rf"{_DOT}\1"),
    (r"([0-9])\.([0-9])", rf"\1{_DOT}\2"),
    (r"\.{2,}", lambda dots: _DOT * len(dots.group()) + _END),
    (r"Ph\.D\.", f"Ph{_DOT}D{_DOT}"),
    (r"\s([A-Za-z])\. ", rf" \1{_DOT} "),
    (rf"([A-Z]\.[A-Z]\.(?:[A-Z]\.)?) {_OPENERS}", rf"\1{_END} \2"),
    (r"([A-Za-z])\.([A-Za-z])\.([A-Za-z])\.", rf"\1{_DOT}\2{_DOT}\3{_DOT}"),
    (r"([A-Za-z])\.([A-Za-z])\.", rf"\1{_DOT}\2{_DOT}"),
    (rf" (Inc|Ltd|Jr|Sr|Co)\. {_OPENERS}", rf" \1{_END} \2"),
    (r" (Inc|Ltd|Jr|Sr|Co)\.", rf" \1{_DOT}"),
    (r" ([A-Za-z])\.", rf" \1{_DOT}"),
    ('\\.(["\u201d])', r"\1."),  # the mark moves out of the quotation
    (r'([!?])"', r'"\1'),
    (r"([.?!])", rf"\1{_END}"),
)


def sentences(text: str) -> list[str]:
    """Sentences as IFBench cuts them: at `.`, `?` and `!`, abbreviations and decimals aside.

    A run of two or more dots ends a sentence; a quotation mark after the end mark stays with the
    sentence. Empty pieces stay, except one at the end.
    """
    aside, back = _set_aside(text)
    marked = f" {text.translate(aside)}  ".replace("\n", " ")
    for pattern, replacement in _DOT_RULES:
        marked = re.sub(pattern, replacement, marked)
    pieces = [piece.strip() for piece in marked.replace(_DOT, ".").split(_END)]
    return [piece.translate(back) for piece in (pieces if pieces[-1] else pieces[:-1])]


def _set_aside(text: str) -> tuple[dict[int, str], dict[int, str]]:
    """How to replace the two markers where the text itself holds them, and how to undo it."""
    free = (chr(code) for code in range(0xE002, 0xF900) if chr(code) not in text)
    others = {ord(marker): next(free) for marker in (_DOT, _END) if marker in text}
    return others, {ord(other): chr(code) for code, other in others.items()}


def without_punctuation(text: str) -> str:
    """The text with every ASCII punctuation mark deleted."""
    return text.translate(_DELETE_PUNCTUATION)


def bare(text: str) -> str:
    """The text without ASCII punctuation and spaces at its ends."""
    return text.strip(_EDGE)


def bare_left(text: str) -> str:
    """The text without ASCII punctuation and spaces at its beginning."""
    return text.lstrip(_EDGE)


def bare_right(text: str) -> str:
    """The text without ASCII punctuation and spaces at its end."""
    return text.rstrip(_EDGE)


def plain_words(text: str) -> list[str]:
    """Lowercase words between white space, punctuation deleted."""
    return without_punctuation(text).lower().split()


def word_runs(text: str) -> list[str]:
    r"""Runs of word characters (`\w+`), as NLTK 3.10 finds them.

    `regex` counts the vowel signs of Indic scripts as word characters; `re` would cut words there.
    """
    return [str(run) for run in regex.findall(r"\w+", text)]
