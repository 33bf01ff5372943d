"""Keywords: quoted words that must (or must not) occur, in the text or in each of its elements."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from herl_megatron.rubrics.checks.muldimif.reading import (
    HAN,
    Limits,
    Rule,
    bullet_items,
    known_number,
    layout,
    numbered_lines,
)

_EACH = re.compile(r"\b(?:each|every)\s+(.+?)\s+(?:must|should|needs to|has to)\s+(.*)", re.I)
_QUOTED = re.compile("[\"'\u300c\u201c]([^\"']+)[\"'\u300d\u201d]")
_DOUBLY_QUOTED = re.compile('["\u201d]{2}([^"\u201c]+)["\u201c]{2}')
_WHOLE_IN_QUOTES = re.compile(r'"+(.*[^"])"+')
_TIMES = re.compile(
    r"at least (\d+|one|two|three|four|five|six|seven|eight|nine|ten|once|twice)(?:\s+times?)?\b"
    r"(?!\s+words\s+long)",
    re.I,
)


@dataclass(frozen=True)
class _Requirement:
    """What one piece of text has to satisfy."""

    keywords: tuple[str, ...]
    excluded: bool = False
    any_of: bool = False
    times: int = 1
    words: Limits = Limits()
    capitalized: bool = False
    ends_with_period: bool = False

    def holds(self, text: str) -> bool:
        if self.capitalized and not all(word[0].isupper() for word in text.split()):
            return False
        if self.ends_with_period and not text.strip().endswith("."):
            return False
        if not self.words.hold(len(text.split())):
            return False
        if self.excluded:
            return not any(occurrences(keyword, text) for keyword in self.keywords)
        enough = [occurrences(keyword, text) >= self.times for keyword in self.keywords]
        return any(enough) if self.any_of else all(enough)


def occurrences(keyword: str, text: str) -> int:
    """Occurrences of a keyword as a whole word of any case, of Chinese ones anywhere."""
    pattern = re.escape(keyword)
    if HAN.search(keyword):
        return len(re.findall(pattern, text))
    return len(re.findall(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE))


def read_keywords(text: str) -> Rule:
    """The rule of a constraint on keywords; ValueError if it names none."""
    if re.search(r"\bif discussing\b", text, re.I):
        raise ValueError("keywords that depend on the topic are not read")
    if re.search(r"\b(each|every)\b", text, re.I) and "for each word" not in text:
        return _read_each(text)
    wanted = re.search(r"includes?\s+the\s+keyword\s+[\"']([^\"']+)[\"']", text, re.I)
    unwanted = re.search(r"avoids?\s+the\s+keyword\s+[\"']([^\"']+)[\"']", text, re.I)
    if wanted and unwanted:
        present, absent = wanted.group(1), unwanted.group(1)
        return lambda response: present in response and absent not in response
    return _read_requirement(text).holds


def read_without_keywords(text: str) -> Rule:
    """The benchmark's rule of a text in which it finds no keyword, or no elements to look at."""
    if re.search(r"\b(each|every)\b", text, re.I) and "for each word" not in text:
        return lambda response: False
    return _read_requirement(text, keywords=()).holds


def _read_each(text: str) -> Rule:
    match = _EACH.search(text)
    if match is None:
        raise ValueError("cannot tell which elements must have the keyword")
    target, requirement = match.group(1).lower(), _read_requirement(match.group(2))

    def rule(response: str) -> bool:
        elements = _elements(response, target)
        return bool(elements) and all(requirement.holds(element) for element in elements)

    return rule


def _read_requirement(text: str, *, keywords: tuple[str, ...] | None = None) -> _Requirement:
    """keywords: instead of those in the text, which must not be missing."""
    text = text.strip()
    if whole := _WHOLE_IN_QUOTES.fullmatch(text):
        text = whole.group(1)
    if re.search(r"avoid\s+using\s+(the\s+)?term|must\s+be\s+avoided", text, re.I):
        quoted = re.search(r"[\"']([^\"']+)[\"']", text)
        if keywords is not None:
            return _Requirement(keywords, excluded=True)
        if quoted is None:
            raise ValueError("no quoted term to avoid")
        return _Requirement((quoted.group(1),), excluded=True)
    pattern = _DOUBLY_QUOTED if _DOUBLY_QUOTED.search(text) else _QUOTED
    found = tuple(pattern.findall(text)) if keywords is None else keywords
    if not found and keywords is None:
        raise ValueError("no quoted keyword")
    return _Requirement(
        found,
        any_of=re.search(r"\bor\b", text, re.I) is not None,
        times=_times(text),
        words=_word_limits(text),
        capitalized=re.search(r"must use capitalized letters for each word", text, re.I)
        is not None,
        ends_with_period=re.search(r"must\s+end\s+with\s+(a\s+)?period", text, re.I) is not None,
    )


def _times(text: str) -> int:
    if re.search(r"must appear multiple times", text, re.I):
        return 2
    match = _TIMES.search(text)
    if match is None:
        return 1
    return {"once": 1, "twice": 2}.get(match.group(1).lower()) or known_number(match.group(1))


def _word_limits(text: str) -> Limits:
    if re.search(r"is\s+a\s+single\s+word", text, re.I):
        return Limits(1, 1)
    least = re.search(r"(?:at\s+least|minimum\s+of)\s+(\S+)\s+word", text, re.I)
    most = re.search(
        r"(?:not\s+exceed|at\s+most|no\s+more\s+than|maximum\s+of)\s+(\S+)\s+word", text, re.I
    )
    return Limits(
        known_number(least.group(1)) if least else None,
        known_number(most.group(1)) if most else None,
    )


def _elements(response: str, target: str) -> list[str]:
    """The pieces that "each ..." speaks of, by the response's layout."""
    kind = layout(response)
    if kind == "table":
        return _column(response, target)
    if kind == "json":
        return _json_values(response)
    if kind == "numbered":
        return [line.split(".", 1)[1].strip() for line in numbered_lines(response)]
    if kind == "bullet":
        return bullet_items(response)
    return _sections(response)


def _sections(response: str) -> list[str]:
    """Pieces between lines that hold one of `-`, `*`, `=` three times or more."""
    sections: list[list[str]] = [[]]
    for line in response.split("\n"):
        if re.fullmatch(r"-{3,}|\*{3,}|={3,}", line.strip()):
            sections.append([])
        else:
            sections[-1].append(line)
    return ["\n".join(lines).strip() for lines in sections if lines] or [response]


def _json_values(response: str) -> list[str]:
    try:
        data = json.loads(response)
    except (ValueError, RecursionError):
        return []
    return [str(value) for value in (data.values() if isinstance(data, dict) else data)]


def _column(response: str, target: str) -> list[str]:
    """The column whose header shares most words with the target, else the wordiest one."""
    lines = [line.strip() for line in response.split("\n")]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith("|") and line.endswith("|")
    ]
    if len(rows) < 3:
        return []
    headers = rows[0]
    body = [row for row in rows[2:] if len(row) == len(headers)]
    if not headers or not body:
        return []
    columns = [
        [re.sub(r"^#+\s*", "", row[index]).strip() for row in body] for index in range(len(headers))
    ]
    target_words = _word_set(target)
    shared = [sum(word in target_words for word in _clean_words(header)) for header in headers]
    if max(shared) > 0:
        return columns[shared.index(max(shared))]
    lengths = [sum(len(cell.split()) for cell in column) for column in columns]
    return columns[lengths.index(max(lengths))]


def _clean_words(text: str) -> list[str]:
    return [word for raw in text.split() if (word := re.sub(r"\W", "", raw).lower())]


def _word_set(text: str) -> frozenset[str]:
    return frozenset(_clean_words(text))
