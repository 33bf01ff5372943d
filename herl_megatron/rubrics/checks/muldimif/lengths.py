"""Length: bounds on words, sentences and paragraphs of the whole response."""

from __future__ import annotations

import re
from dataclasses import dataclass

from herl_megatron.rubrics.checks.muldimif.keywords import occurrences
from herl_megatron.rubrics.checks.muldimif.reading import (
    CHINESE_NUMBER,
    NUMBER,
    Limits,
    Rule,
    find_limits,
    number,
)
from herl_megatron.rubrics.checks.muldimif.words_each import read_words_of_each

_WIDE = "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\u3000-\u303f\uff00-\uffef]"

# In the order in which they are tried; text is lower case, a range's two numbers are in order.
_SENTENCES = (
    ("exact", rf"exactly:? {NUMBER} (?:topic )?sentences?"),
    ("exact", rf"(?:should|must) contain {NUMBER} sentences?"),
    ("one", r"be a single sentence|consisting of (?:only )?one sentence|in a single sentence"),
    ("least", rf"at least:? {NUMBER} sentences?"),
    ("least", rf"(?:a minimum of|no fewer than) {NUMBER} sentences?"),
    (
        "least",
        rf"(?:\u81f3\u5c11|\u6700\u5c11)(?:\u5305\u542b)?{CHINESE_NUMBER}(?:\u4e2a\u53e5\u5b50|\u53e5|\u500b\u53e5\u5b50)",
    ),
    ("most", rf"at most:? {NUMBER} sentences?"),
    ("most", rf"(?:not exceeding| not exceed|not to exceed) {NUMBER} sentences?"),
    ("most", rf"no (?:more|longer) than {NUMBER} sentences?"),
    ("most", rf"(?:limited to|a maximum (?:length )?of) {NUMBER} sentences?"),
    ("most", rf"not surpass(?: a total of)? {NUMBER} sentences?"),
    (
        "most",
        rf"(?:\u81f3\u591a|\u6700\u591a)(?:\u5305\u542b)?{CHINESE_NUMBER}(?:\u4e2a\u53e5\u5b50|\u53e5|\u500b\u53e5\u5b50)",
    ),
    ("range", rf"range:? {NUMBER}-{NUMBER} sentences?"),
    ("range", rf"between {NUMBER} (?:and|to) {NUMBER} sentences?"),
    (
        "range",
        rf"(?:into|range of|composed of|consists? of|consisting of) {NUMBER} to {NUMBER} sent",
    ),
    (
        "range",
        rf"{CHINESE_NUMBER}\u5230{CHINESE_NUMBER}(?:\u4e2a\u53e5\u5b50|\u53e5|\u500b\u53e5\u5b50)",
    ),
)
_PARAGRAPHS = (
    ("exact", rf"exactly {NUMBER} paragraphs?"),
    ("exact", rf"(?:should|must) contain {NUMBER} paragraphs?"),
    ("one", r"be a single paragraph"),
    ("least", rf"(?:at )?least:? {NUMBER} paragraphs?"),
    ("least", rf"a minimum of {NUMBER}(?: distinct)? paragraphs?"),
    ("most", rf"(?:at most|not exceeding|no more than) {NUMBER} paragraphs?"),
    ("most", rf"\u6700\u591a(?:\u5206\u4e3a)?{CHINESE_NUMBER}\u4e2a\u6bb5\u843d"),
    ("range", r"range:? (\d+)-(\d+)"),
    ("range", r"between (\d+) and (\d+) paragraphs?"),
    ("range", r"(\d+) to (\d+) paragraphs?"),
)
_AT_LEAST = r"(?:at least|minimum of|minimum length of|no less than)"
_AT_MOST = (
    r"(?:not exceed|not exceeding|not surpass|at most|no more than|maximum of|maximum length of"
    r"|no longer than|limit of|within|within a)"
)
_CHINESE_MOST = (
    r"\u6700\u591a(\d+)(?:\u4e2a|\u5b57)",
    r"\u5728(\d+)\s*(?:\u4e2a\u5355\u8bcd\u4ee5\u5185|\u4e2a\u5b57\u4ee5\u5185|\u5b57\u4ee5\u5185|\u5355\u8bcd\u4ee5\u5185|\u8bcd\u4ee5\u5185|\u5b57)",
)


def read_sentences(text: str) -> Rule:
    """Bounds on the number of `.`, `!` and `?`; ValueError if the text has none."""
    limits = find_limits(text.lower(), _SENTENCES)
    if limits is None:
        raise ValueError("no number of sentences")
    return lambda response: limits.hold(len(re.findall(r"[.!?]", response)))


def read_paragraphs(text: str) -> Rule:
    """Bounds on the pieces between blank lines; ValueError if the text has none."""
    limits = find_limits(text.lower(), _PARAGRAPHS)
    if limits is None:
        raise ValueError("no number of paragraphs")
    return lambda response: limits.hold(sum(1 for piece in response.split("\n\n") if piece.strip()))


@dataclass(frozen=True)
class _Length:
    """Bounds on words, and what such constraints ask for besides."""

    words: Limits
    sentences: Limits
    keywords: tuple[str, ...]

    def holds(self, response: str) -> bool:
        return (
            all(occurrences(keyword, response) for keyword in self.keywords)
            and self.words.hold(count_words(response))
            and self.sentences.hold(len(re.findall(r"[.!?]+", response)))
        )


def count_words(text: str) -> int:
    """Words between white space; for text with any Chinese, its Chinese characters and marks."""
    return len(re.findall(_WIDE, text)) or len(text.split())


def asks_of_each(text: str) -> bool:
    """Whether a constraint on words speaks of each of some elements."""
    return re.search(r"\beach\b", text, re.I) is not None


def read_words(text: str) -> Rule:
    """The rule of a constraint on the number of words; ValueError if it has no bound."""
    if asks_of_each(text):
        return read_words_of_each(text)
    text = re.sub(r"\s+", " ", text.lower().strip('"').strip())
    text = text.replace("-word", " word").replace("a total of ", "").replace("words", "word")
    text = text.replace("a single", "exactly one")
    exact = re.search(r"exactly ([a-z0-9,-]+) \S", text)
    if exact and (count := number(exact.group(1))) is not None:
        return lambda response: count_words(response) == count
    length = _Length(
        words=_word_limits(text),
        sentences=Limits(
            _bound(text, r"(?:at least|minimum of) (\S+) sentence"),
            _bound(
                text,
                r"(?:not exceed|at most|no more than|maximum of|maximum length of|no longer than) "
                r"(\S+) sentence",
            ),
        ),
        keywords=tuple(re.findall(r"[\"']([^']*)[\"']", text)),
    )
    if length == _Length(Limits(), Limits(), ()):
        raise ValueError("no number of words")
    return length.holds


def _word_limits(text: str) -> Limits:
    limits = _range(text)
    least, most = limits.least, limits.most
    if least is None:
        least = _bound(text, rf"{_AT_LEAST} (\S+) word")
    if most is None:
        most = _bound(text, rf"{_AT_MOST} (\S+) word")
    for pattern in _CHINESE_MOST:
        most = _bound(text, pattern) if most is None else most
    return Limits(least, most)


def _range(text: str) -> Limits:
    """A range in any of its notations, or the number after "to" ("limit it to 50 word")."""
    limits = Limits()
    value = r"([a-z0-9\u2013-]+)"
    phrase = r"([a-z0-9\u2013 -]+?)"
    for pattern in (
        rf"between {phrase} to {value}",
        rf"between {phrase} and {value}",
        rf"range:? {phrase} to {value}",
        rf"range:? {value} ?[-\u2013] ?{value}",
        rf"\b{value} to {value}\b",
        r"\b([a-z0-9]+) ?[-\u2013] ?([a-z0-9]+)\b",
        r"([0-9]+)\s*\u5230\s*([0-9]+)(?=\s*\u4e2a|\u5b57)",
    ):
        match = re.search(pattern, text)
        if match is None:
            continue
        first, second = number(match.group(1)), number(match.group(2))
        if first is not None and second is not None:
            return Limits(min(first, second), max(first, second))
        limits = Limits(first, second)
    return limits


def _bound(text: str, pattern: str) -> int | None:
    match = re.search(pattern, text)
    return number(match.group(1)) if match else None
