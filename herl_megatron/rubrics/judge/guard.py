"""Guards against responses that talk to their judge.

A response is untrusted: the policy is paid for whatever makes the judge say yes. These guards make
the known tricks fail or show; a judge model that believes what it reads can still be talked into a
verdict, so they are no security boundary.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

_JOINERS = "\u200c\u200d"
"""They shape letters of some scripts and emoji, and have no work beside ASCII."""
_KEPT_CONTROLS = "\n\t" + _JOINERS
_IDLE_JOINERS = re.compile(rf"(?<=[\x00-\x7f])[{_JOINERS}]+|[{_JOINERS}]+(?=[\x00-\x7f])")
# <|im_end|>, also with the full-width bars and brackets that some tokenizers use.
_BAR_OPENS = re.compile("([<\uff1c])([|\uff5c])")
_BAR_CLOSES = re.compile("([|\uff5c])([>\uff1e])")
_NAMED = re.compile(
    r"([<\uff1c])(?=\s*/?\s*(?:think|thinking|s|bos|eos|pad|unk|mask|sys|tool_call|tool_response|"
    r"start_of_turn|end_of_turn|system|user|assistant|<\s*/?\s*sys)\s*[>\uff1e])",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"\[(?=\s*/?\s*(?:inst|system_prompt|available_tools)\s*\])", re.IGNORECASE)
_ADDRESSES_JUDGE = re.compile(
    r"\b(?:ignore|disregard|forget)\b.{0,40}\b(?:rules?|instructions?|criteria|rubric)\b"
    r"|\b(?:dear|note to|attention|message to)\b.{0,20}\b(?:judge|grader|evaluator)\b"
    r"|\b(?:mark|grade|score|rate|judge)\b.{0,40}\b(?:all|every|each)\b.{0,40}"
    r"\b(?:true|met|satisfied|followed|10)\b"
    r"|\b(?:begin|end) (?:of )?response\b"
    r"|[\"']?\b(?:verdicts?|results?|s\d+)[\"']\s*:\s*[\[{t]",
    re.IGNORECASE | re.DOTALL,
)


def make_marker(*content: object) -> str:
    """16 hex digits that follow from everything that a request is made of, the response included.

    A response that holds its own marker would be a fixed point of SHA-256, cut to 64 bits: nobody
    can write one, yet the same request always has the same marker.
    """
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def neutralise(text: str) -> str:
    """`text` without what a tokenizer or a reader's eye could take for something else.

    Control tokens of chat templates are broken by a space, invisible and direction-changing
    characters dropped. Joiners stay where they shape letters or emoji.
    """
    visible = "".join(
        c for c in text if c in _KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )
    visible = _IDLE_JOINERS.sub("", visible)
    broken = _BAR_CLOSES.sub(r"\1 \2", _BAR_OPENS.sub(r"\1 \2", visible))
    return _BRACKETED.sub("[ ", _NAMED.sub(r"\1 ", broken))


def quote_is_in(quote: str, text: str) -> bool:
    """Whether `quote` stands in `text`, apart from case, spacing, quotation marks and an end."""
    return _plain(quote) in _plain(text)


def addresses_judge(response: str) -> bool:
    """Whether the response seems to speak to its judge: for counting, never for scoring."""
    return _ADDRESSES_JUDGE.search(response) is not None


def absent_word(marker: str, response: str) -> str:
    """A made-up word that is not in the response."""
    consonants, vowels = "bdfgklmnprtvz", "aeiou"
    for start in range(0, 8):
        digits = [int(c, 16) for c in marker[start : start + 8]]
        word = "".join(
            (vowels[d % 5] if i % 2 else consonants[d % 13]) for i, d in enumerate(digits)
        )
        if word not in response.lower():
            return word
    raise AssertionError("eight derived words are all in the response")


def excerpt(marker: str, response: str) -> str:
    """Up to six words in a row from a place that the marker picks; empty without any word."""
    words = response.split()
    if not words:
        return ""
    start = int(marker, 16) % max(len(words) - 5, 1)
    return " ".join(words[start : start + 6])[:120]


def shuffled(items: Sequence[object], marker: str) -> list[int]:
    """The positions of `items` in an order that follows from the marker."""
    keys = [hashlib.sha256(f"{marker}/{i}".encode()).digest() for i in range(len(items))]
    return sorted(range(len(items)), key=keys.__getitem__)


def _plain(text: str) -> str:
    """Compatibility forms and case folded, one space between words, outer quotes and dots off."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = re.sub("[\u2018\u2019]", "'", re.sub("[\u201c\u201d]", '"', folded))
    return " ".join(folded.split()).strip("\"'. ")
