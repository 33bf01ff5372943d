"""Language: the case of English text, and simplified or traditional Chinese."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

from herl_megatron.rubrics.checks.muldimif.reading import Rule

_LETTER_CASE: dict[str, Callable[[str], bool]] = {
    "upper": lambda text: bool(text == text.upper()),
    "title": lambda text: not any("a" <= word[0] <= "z" for word in text.split()),
    "lower": lambda text: bool(text == text.lower()),
}


# Looked up here: the first use of a codec imports it, which must not happen under a time limit.
_GB2312, _BIG5 = codecs.lookup("gb2312"), codecs.lookup("big5")


def read_english(text: str) -> Rule:
    """The rule of a constraint on case; ValueError if it asks for none."""
    text = text.lower()
    in_case = _LETTER_CASE[_wanted_case(text)]

    def rule(response: str) -> bool:
        return bool(response.strip()) and in_case(_part(response, text))

    return rule


def _wanted_case(text: str) -> str:
    if re.search(r"\ball[- ]?uppercase\b", text) or "in capitalized form" in text:
        return "upper"
    if re.search(r"\bcapitalized\b", text) or "each word in" in text:
        return "title"
    if "capital" in text and "each" in text:
        return "title"
    if re.search(r"\blowercase\b", text):
        return "lower"
    raise ValueError("no letter case is asked for")


def _part(response: str, text: str) -> str:
    """The part of the response that the constraint speaks of; all of it where that is missing."""
    if "table" in text:
        return _cells(response, text)
    if "json" in text:
        if "keys" in text:
            found = re.findall(r'"([^"]+)"\s*:', response)
        else:
            found = re.findall(r':\s*"([^"]+)"', response) if "values" in text else []
        return " ".join(found) if found and "{" in response and "}" in response else response
    if "heading" in text:
        return " ".join(re.findall(r"^#+\s*(.+)$", response, re.MULTILINE)) or response
    return response


def _cells(response: str, text: str) -> str:
    if "|" not in response:
        return response
    rows = [line for line in response.split("\n") if line.strip()]
    if "headings" not in text:
        if "header" in text:
            rows = rows[:1]
        elif "entries" in text:
            if len(rows) == 1:
                return response
            rows = rows[1:]
    return " ".join(cell.strip() for row in rows for cell in row.split("|") if cell.strip())


def read_chinese(text: str) -> Rule:
    """The rule of a constraint on Chinese; ValueError if it asks for neither script nor phrase.

    A character is simplified if GB 2312 has it and Big5 has not, traditional the other way round:
    the two standards were made for one script each, so no conversion table is needed.
    """
    if phrase := re.search(r'must include the phrase "{1,2}(.+?)"{1,2}', text, re.I):
        wanted = phrase.group(1)
        return lambda response: wanted in response
    traditional = r"traditional chinese characters"
    if re.search(rf"must (?:use|convert into|be converted into) {traditional}", text, re.I):
        return lambda response: not _latin(response) and not _has_simplified(response)
    if re.search(
        rf"(?:include|use) .*?{traditional}|\u4f7f\u7528\u7e41\u9ad4\u4e2d\u6587", text, re.I
    ):
        return _has_traditional
    if re.search(r"must translate the text into simplified chinese", text, re.I):
        return lambda response: not _latin(response) and not _has_traditional(response)
    if re.search(r"simplified|\u7b80\u4f53", text, re.I):
        return _has_simplified
    raise ValueError("neither simplified nor traditional Chinese is asked for")


def _latin(text: str) -> bool:
    return re.search(r"[A-Za-z]", text) is not None


def _has_simplified(text: str) -> bool:
    return any(_encodes(char, _GB2312) and not _encodes(char, _BIG5) for char in _han(text))


def _has_traditional(text: str) -> bool:
    return any(_encodes(char, _BIG5) and not _encodes(char, _GB2312) for char in _han(text))


def _han(text: str) -> set[str]:
    return {char for char in text if "\u4e00" <= char <= "\u9fff"}


def _encodes(char: str, standard: codecs.CodecInfo) -> bool:
    try:
        standard.encode(char)
    except UnicodeEncodeError:
        return False
    return True
