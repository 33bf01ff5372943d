"""A server's words without anything that resembles a key. Pure.

A server may echo a key whole, in part ("sk-ab...wxyz"), in other case or encoding, or broken by
white space; and it may name keys that are not ours. What looks like one is replaced as a whole
word, so that no part of it is left. Words may be lost with it: secrecy counts for more.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

MASK = "[key]"
SHOWN = 300
"""Characters of a server's words in a message."""
_READ = 4_000
"""Characters that are looked at; an error's body may be a whole page."""
_RUN, _RUN_OF_WORDS = 6, 12
"""So many letters and digits in a row as in the key, and the word is taken for a part of it; more
over several words, or "API key" would be a part of "my-api-key"."""
_WHOLE = 4
"""A word of so many letters and digits that stands in the key as a whole is a part of it."""

_DOTS = "\u2026"
_STARS = "*#\u2022\u25cf\u00b7\u2588"
_TOKEN = re.compile(
    rf"(?:[\w+/%~\-{_STARS}{_DOTS}]|\.{{2,}}|[.:=@](?=[\w+/%~\-{_STARS}{_DOTS}]))+=*"
)
_STARRED = re.compile(rf"[{_STARS}]{{2,}}|[\u2022\u25cf\u2588]")
_ELIDED = re.compile(rf"[{_STARS}{_DOTS}]+|\.{{2,}}|[xX]{{3,}}|_{{3,}}|-{{3,}}")
_WITHIN = re.compile(rf"\w(?:{_DOTS}|\.{{3,}})\w")
_FILLED = re.compile(r"[xX]{4,}|_{4,}|-{4,}")
_CALLED = re.compile(
    r"(?i)\b(?:bearer|basic|api[-_ ]?key|x-api-key|access[-_ ]?key|secret|password|token"
    r"|authorization|credentials?|key(?=\s*[:=]))\b[\"']?\s*(?:[:=]|\s)\s*(?=[\"']?([^\s\"',;]{6,}))"
)
_PREFIXED = re.compile(
    r"(?i)\b(?:(?:sk|pk|rk|ak|gsk|csk|xai|nvapi|hf|r8|fw|tgp|pplx|ghp|gho|ghu|ghs|glpat|xox[a-z]"
    r"|github_pat)[-_][\w\-.*]{3,}|AIza[\w\-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{8,}|ya29\.[\w\-]+"
    r"|eyJ[\w\-]{8,}(?:\.[\w\-]+)*)"
)
_UUID = re.compile(r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HEX = re.compile(r"(?i)[0-9a-f]{16,}")


class Masker:
    """Takes out of a text what resembles `key` (may be empty) or any key, and puts it on one line.

    `known` are names that look like keys and are none, such as the model's.
    """

    def __init__(self, key: str, *, known: tuple[str, ...] = ()) -> None:
        self._key = key
        self._plain = _letters(key)
        self._known = tuple(name for name in known if len(name) >= _WHOLE)
        variants = list(_variants(key)) if len(self._plain) >= _WHOLE else []
        self._runs = _Runs(variants, min(_RUN, len(self._plain)))
        self._runs_of_words = _Runs(variants, min(_RUN_OF_WORDS, len(self._plain)))

    def __call__(self, text: str) -> str:
        """At most `SHOWN` characters of `text`, masked."""
        return self.masked(text)[:SHOWN]

    def masked(self, text: str) -> str:
        """All of `text` up to a bound, masked."""
        shown = _readable(text[:_READ])
        marked = [False] * len(shown)
        if self._runs.known:
            self._runs_of_words.mark(marked, shown, 0)
            for word in re.finditer(r"\S+", shown):
                self._runs.mark(marked, word[0], word.start())
        spans = [m.span() for m in _TOKEN.finditer(shown) if self._is_key(m, marked)]
        spans += _spans(marked)
        spans += [m.span() for m in _PREFIXED.finditer(shown)]
        spans += [m.span(1) for m in _CALLED.finditer(shown) if _is_secret(m[1])]
        if self._key and not self._runs.known:  # too short to have parts
            whole = re.compile(rf"(?<!\w){re.escape(self._key)}(?!\w)", re.IGNORECASE)
            spans += [m.span() for m in whole.finditer(shown)]
        return _replaced(shown, spans)

    def _is_key(self, match: re.Match[str], marked: list[bool]) -> bool:
        token = match[0]
        if any(marked[slice(*match.span())]) or (_letters(token) and _STARRED.search(token)):
            return True
        if self._runs.known and any(self._is_part(word) for word in re.split("[.:=@/]+", token)):
            return True
        if self._runs.known and self._shows_an_end(token):
            return True
        for name in self._known:
            token = token.replace(name, "")
        filled = _FILLED.search(token) and re.search(r"\d", token)
        return bool(filled or _WITHIN.search(token)) or _looks_random(token)

    def _is_part(self, word: str) -> bool:
        """Whether a whole word is a piece of the key, or its first or last three characters."""
        plain, as_is = _letters(word), word.lower()
        if len(plain) >= _WHOLE:
            return plain in self._plain
        if len(word) >= _WHOLE and plain:
            return self._key.lower().startswith(as_is) or self._key.lower().endswith(as_is)
        ends = self._plain.startswith(plain) or self._plain.endswith(plain)
        return len(plain) == _WHOLE - 1 and ends and any(c.isdigit() for c in plain)

    def _shows_an_end(self, token: str) -> bool:
        """Whether the key's beginning or end stands beside an ellipsis."""
        if not _ELIDED.search(token):
            return False
        parts = [_letters(part) for part in _ELIDED.split(token)]
        return any(
            len(part) > 1 and (self._plain.startswith(part) or self._plain.endswith(part))
            for part in parts
        )


class _Runs:
    """All runs of `length` letters and digits in the variants of a key."""

    def __init__(self, variants: Sequence[str], length: int) -> None:
        self._length = length
        self.known = frozenset(
            variant[i : i + length]
            for variant in variants
            for i in range(len(variant) - length + 1)
        )

    def mark(self, marked: list[bool], text: str, start: int) -> None:
        """Mark what of `text`, at `start` in the whole, belongs to such a run; whatever is neither
        letter nor digit is left aside."""
        places = [i for i, c in enumerate(text) if c.isalnum()]
        plain = "".join(text[i].lower()[0] for i in places)
        for i in range(len(plain) - self._length + 1):
            if plain[i : i + self._length] in self.known:
                first, last = start + places[i], start + places[i + self._length - 1]
                marked[first : last + 1] = [True] * (last + 1 - first)


def _letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return "".join(c.lower()[0] for c in text if c.isalnum())


def _variants(key: str) -> Iterator[str]:
    """The key as it may be written, letters and digits alone."""
    yield _letters(key)
    yield _letters(key)[::-1]
    data = key.encode()
    yield data.hex()
    for before in range(3):  # base64 differs by where the key begins within what is encoded
        coded = base64.b64encode(b"\0" * before + data)
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        yield _letters(coded[first:last].decode())


def _readable(text: str) -> str:
    """On one line, with what HTML, JSON and addresses escape as it is meant."""
    for _ in range(2):
        text = html.unescape(text)
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
        text = unquote(text, errors="replace")
    text = unicodedata.normalize("NFKC", text)  # full-width letters and their like
    text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    return " ".join(text.split())


def _is_secret(word: str) -> bool:
    """Whether what follows "key:" or "Bearer" is one, and no word of the sentence."""
    bare = word.rstrip(".)]}")
    mixed = re.search(r"[a-z][A-Z]|[A-Za-z]\d|\d[A-Za-z]", bare) is not None
    return len(bare) >= 6 and (mixed or len(bare) >= 20)


def _looks_random(token: str) -> bool:
    """Long hex, base64 and the like; names are made of shorter words."""
    if _UUID.search(token) or _HEX.search(token):
        return True
    if len(token) >= 20 and ("+" in token or token.endswith("=")) and re.search(r"\d", token):
        return True
    pieces = re.split(r"[^A-Za-z0-9]+", token)
    return any(
        len(piece) >= 40
        or (len(piece) >= 16 and re.search(r"\d", piece) and re.search(r"[A-Za-z]", piece))
        for piece in pieces
    )


def _spans(marked: list[bool]) -> list[tuple[int, int]]:
    """Spans of marked characters."""
    spans, start = [], -1
    for i, is_marked in enumerate([*marked, False]):
        if is_marked and start < 0:
            start = i
        elif not is_marked and start >= 0:
            spans.append((start, i))
            start = -1
    return spans


def _replaced(text: str, spans: list[tuple[int, int]]) -> str:
    """`text` with one mask for all spans that overlap or touch."""
    shown, at = [], 0
    covered = -1
    for start, end in sorted(spans):
        if end <= covered:
            continue
        if start > covered:
            shown += [text[at:start], MASK]
        covered = at = end
    return "".join([*shown, text[at:]])
