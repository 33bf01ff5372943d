"""How MulDimIF's rules read a constraint: numbers in words, limits, and the parts of a response."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Rule = Callable[[str], bool]
"""What a constraint's text is read into: response -> followed."""

_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
    "hundred": 100,
}
_CHINESE_DIGITS = {
    digit: value
    for value, digit in enumerate(
        "\u96f6\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d\u5341"
    )
} | {"\u4e24": 2}

_WORDS_LONGEST_FIRST = sorted(_NUMBER_WORDS, key=len, reverse=True)
NUMBER = rf"(\d+|{'|'.join(_WORDS_LONGEST_FIRST)})"
"""A number in digits or as one English word, as a group of a pattern (lower case)."""
CHINESE_NUMBER = rf"(\d+|[{''.join(_CHINESE_DIGITS)}])"
HAN = re.compile("[\u4e00-\u9fff]")


def number(text: str) -> int | None:
    """The number in digits or words ("2,500", "twenty-five", "two hundred"), None if it is none."""
    text = text.strip().replace(",", "").lower()
    if text.isdigit():
        return int(text)
    if text in _CHINESE_DIGITS:
        return _CHINESE_DIGITS[text]
    total = 0
    for part in re.split(r"[\s-]+", text):
        if part not in _NUMBER_WORDS:
            return None
        value = _NUMBER_WORDS[part]
        total = max(total, 1) * value if value == 100 else total + value
    return total


def known_number(text: str) -> int:
    """`number` of a text that a pattern has matched; ValueError for one that is no number."""
    value = number(text)
    if value is None:
        raise ValueError(f"{text!r} is not a number this rule reads")
    return value


@dataclass(frozen=True)
class Limits:
    """A count's bounds, ends included; None leaves a side open."""

    least: int | None = None
    most: int | None = None

    def hold(self, count: int) -> bool:
        """Whether the count is within the bounds."""
        above = self.least is None or count >= self.least
        return above and (self.most is None or count <= self.most)


def find_limits(text: str, patterns: Iterable[tuple[str, str]]) -> Limits | None:
    """The limits of the first `(kind, pattern)` that is found in the lower-case text.

    Kinds: exact, least and most take the pattern's one group, range takes two, one takes none.
    """
    for kind, pattern in patterns:
        match = re.search(pattern, text)
        if match is None:
            continue
        values = [known_number(group) for group in match.groups()]
        if kind == "range":
            return Limits(values[0], values[1])
        if kind == "one":
            return Limits(1, 1)
        least = values[0] if kind in ("exact", "least") else None
        return Limits(least, values[0] if kind in ("exact", "most") else None)
    return None


def any_line(pattern: str, response: str) -> bool:
    r"""Whether a line starts with the pattern.

    Line by line, as `^\s*` over all lines takes quadratic time in runs of blank ones.
    """
    return any(re.match(pattern, line) for line in response.split("\n"))


def layout(response: str) -> str:
    """How a response lists its elements: json, table, numbered, bullet or plain."""
    if re.match(r"\s*[{\[]", response):
        return "json"
    if any_line(r"\s*\|.+\|", response):
        return "table"
    if re.match(r"\s*\d+\.\s+", response):
        return "numbered"
    return "bullet" if re.match(r"\s*[-*] ", response) else "plain"


def numbered_lines(response: str) -> list[str]:
    """Lines that start with a number, a dot and a blank."""
    return [line for line in response.split("\n") if re.match(r"\s*\d+\.\s+", line)]


def bullet_items(response: str) -> list[str]:
    """What follows the first blank in lines that start with `-` or `*`."""
    lines = [line for line in response.split("\n") if re.match(r"\s*[-*] ", line)]
    return [line.split(" ", 1)[1].strip() for line in lines]
