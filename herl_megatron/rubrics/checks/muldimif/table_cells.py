"""Tables: that there is one, and its rows, columns and headers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from herl_megatron.rubrics.checks.muldimif.reading import NUMBER, Limits, Rule, find_limits

_TABLE = r"(?:a |any )?(?:tables?|tabular data)"
_OPTIONAL = re.compile(
    rf"if you (?:include|use|utilize|incorporate|present) {_TABLE}"
    rf"|if you (?:decide|choose|opt) to (?:use|include|incorporate|present|utilize) {_TABLE}"
    r"|if (?:there (?:is|are) )?(?:a |any )?(?:tables?|tabular data|table format)"
    r"(?: (?:is|are))? (?:used|included|utilized|incorporated|presented|chosen)"
)


def _patterns(unit: str) -> tuple[tuple[str, str], ...]:
    """How limits on rows or columns are worded, in the order in which they are tried."""
    return (
        ("exact", rf"exactly\s+{NUMBER}\s+{unit}s?"),
        ("most", rf"no\s+more\s+than\s+{NUMBER}\s+{unit}s?"),
        ("most", rf"not\s+(?:have\s+more\s+than|exceed|exceeding)\s+{NUMBER}\s+{unit}s?"),
        ("most", rf"{unit}\s+limit\s+of\s+{NUMBER}"),
        ("exact", rf"{NUMBER}\s+{unit}s?\s+must\s+be\s+included"),
        ("exact", rf"exactly\s+.+and {NUMBER}\s+{unit}s?"),
        ("most", rf"not exceed\s+.+and {NUMBER}\s+{unit}s?"),
        (
            "most",
            rf"(?:a maximum of|limited to|limit it to|limit the table to)\s+{NUMBER}\s+{unit}s",
        ),
        ("most", rf"a maximum of\s+.+and {NUMBER}\s+{unit}s?"),
        ("most", rf"limit the number of {unit}s to\s+{NUMBER}"),
        ("most", rf"number of {unit}s in each table does not exceed\s+{NUMBER}"),
    )


_ROWS = _patterns("row")
_COLUMNS = (
    ("one", r"single column"),
    *_patterns("column"),
    ("exact", rf"in\s+{NUMBER}\s+columns"),
    ("most", rf"(?:maximum of|maximum|at most)\s+{NUMBER}\s+columns"),
)


@dataclass(frozen=True)
class _Table:
    """What is asked of the table, and whether there has to be one."""

    optional: bool
    rows: Limits
    columns: Limits
    headers: tuple[str, ...]
    contents: tuple[str, ...]

    def holds(self, response: str) -> bool:
        if "|" not in response:
            return self.optional
        table = re.search(r"\|.*\|", response, re.DOTALL)
        lines = [line.strip() for line in (table.group() if table else "").split("\n")]
        lines = [line for line in lines if line]
        ruled = len(lines) > 1 and "---" in lines[1]
        if not self.rows.hold(len(lines) - (2 if ruled else 1)):
            return False
        if not lines:
            return self == _Table(self.optional, self.rows, Limits(), (), ())
        if not self.columns.hold(lines[0].count("|") - 1):
            return False
        headers = [header.strip().lower() for header in lines[0].split("|")[1:-1]]
        return all(any(name in header for header in headers) for name in self.headers) and all(
            _mentioned(content, headers, " ".join(lines).lower()) for content in self.contents
        )


def _mentioned(content: str, headers: list[str], table: str) -> bool:
    """The table has the words, or a header has one of them."""
    words = content.split()
    return content in table or any(word in header for word in words for header in headers)


def read_table(text: str) -> Rule:
    """The rule of a constraint on a table; ValueError if it asks for nothing a table can have."""
    text = text.lower()
    names_table = "table" in text
    table = _Table(
        optional=not names_table or _OPTIONAL.search(text) is not None,
        rows=find_limits(text, _ROWS) or Limits(),
        columns=find_limits(text, _COLUMNS) or Limits(),
        headers=_headers(text),
        contents=_contents(text),
    )
    if not names_table and table == _Table(True, Limits(), Limits(), (), ()):
        raise ValueError("nothing is asked of a table")
    return table.holds


def _headers(text: str) -> tuple[str, ...]:
    """Names of columns: in double quotes, or listed after "columns:" or "columns should be"."""
    quoted = tuple(name for raw in re.findall(r'"([^"]+)"', text) if (name := raw.strip(" ,")))
    if "columns for" in text and quoted:
        return quoted
    listed: list[str] = []
    for pattern in (r"columns?\s+should\s+be\s+([\w\s,]+)", r"columns:\s+([\w\s,']+)"):
        if match := re.search(pattern, text):
            listed += re.split(r",|\band\b", match.group(1))
    return tuple(name for raw in listed if (name := raw.strip("' "))) or quoted


def _contents(text: str) -> tuple[str, ...]:
    """What each entry must include."""
    match = re.search(
        r"each (?:entry|row|item|game|series) (?:must include|should (?:be )?(?:present|include"
        r"|contain|show)(?:ed)?(?: in| with)?) (?:the )?([\w\s,]+)",
        text,
    )
    if match is None:
        return ()
    parts = re.split(r",|\band\b(?: its| their)?", match.group(1))
    return tuple(part for raw in parts if (part := raw.strip()))
