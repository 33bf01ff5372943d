"""IFBench checks that each belong to one request (`custom:`), with the exact semantics."""

from __future__ import annotations

import csv
import io
import re
import string
import unicodedata
from itertools import pairwise

from herl_megatron.rubrics.checks.registry import register
from herl_megatron.rubrics.checks.words import bare, sentences, without_punctuation

_CAPITALS = (
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin "
    "Amsterdam Warsaw London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz "
    "Chisinau Bern Ljubljana Zagreb"
).split()
_QUESTION = re.compile(r"\n*Question \d+[.|):;]?\s*")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")
_AFRICAN_LINES = 52
_LONG_MONTHS, _SHORT_MONTHS = (1, 3, 5, 7, 8, 10, 12), (4, 6, 9, 11)


def _ascii(text: str) -> str:
    """Without accents, and without characters that have no ASCII base."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


@register(
    "ifbench/custom:multiples", description="Count from 10 to 50, printing only multiples of 7."
)
def multiples(response: str) -> bool:
    """The numbers in the text are 14, 21, 28, 35, 42, 49."""
    return re.findall(r"\d+", response) == ["14", "21", "28", "35", "42", "49"]


@register(
    "ifbench/custom:mcq_count_length",
    description='Write four multiple choice questions labelled "Question" with five options each, '
    "every question longer than the one before.",
)
def mcq_count_length(response: str) -> bool:
    """Four questions of five lettered options; what precedes the options grows in length."""
    if not response.startswith("Question"):
        return False
    questions = [piece.strip() for piece in _QUESTION.split(response) if piece.strip()]
    lengths = []
    for question in questions:
        lines = [line.strip() for line in question.split("\n")]
        options = [index for index, line in enumerate(lines) if _OPTION.match(line)]
        if len(options) != 5:
            return False
        lengths.append(len(" ".join(lines[: options[0]]).strip()))
    return len(lengths) == 4 and all(first < second for first, second in pairwise(lengths))


@register(
    "ifbench/custom:reverse_newline",
    description="List the countries of Africa in reverse alphabetical order, one on each line.",
)
def reverse_newline(response: str) -> bool:
    """From the line with Zimbabwe on, at least 52 lines in descending order, accents aside."""
    lines = [line for line in map(bare, response.split("\n")) if line]
    start = next((n for n, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    listed = [_ascii(line) for line in lines[start:]]
    return len(listed) >= _AFRICAN_LINES and listed == sorted(listed, reverse=True)


@register(
    "ifbench/custom:word_reverse",
    description="Name the national symbol of the US in a sentence with its words in reverse order.",
)
def word_reverse(response: str) -> bool:
    """Read backwards, the words hold "bald eagle" and make one sentence."""
    words = without_punctuation(response.lower().strip()).split()
    text = " ".join(reversed(words))
    return "bald eagle" in text and text in sentences(text)


@register(
    "ifbench/custom:character_reverse",
    description="Name the national symbol of the US with its letters in reverse order.",
)
def character_reverse(response: str) -> bool:
    """The words "bald eagle" occur backwards."""
    return "bald eagle"[::-1] in response.lower()


@register(
    "ifbench/custom:sentence_alphabet",
    description="Write 26 sentences whose first words start with A to Z in order.",
)
def sentence_alphabet(response: str) -> bool:
    """The first letters of the sentences are the alphabet."""
    initials = [sentence[:1].lower() for sentence in sentences(response)]
    return initials == list(string.ascii_lowercase)


@register(
    "ifbench/custom:european_capitals_sort",
    description="List the European capitals north of 45 degrees, separated by commas, from north "
    "to south.",
)
def european_capitals_sort(response: str) -> bool:
    """The benchmark's 27 capitals in its order, accents aside."""
    return [item.strip() for item in _ascii(response).split(",") if item.strip()] == _CAPITALS


@register(
    "ifbench/custom:csv_city",
    description="Write CSV with the columns ID, Country, City, Year and Count and seven rows.",
)
def csv_city(response: str) -> bool:
    """The header and seven rows of five fields."""
    rows = _csv_rows(response, delimiter=",")
    header = ["ID", "Country", "City", "Year", "Count"]
    return len(rows) == 8 and rows[0] == header and all(len(row) == 5 for row in rows)


@register(
    "ifbench/custom:csv_special_character",
    description="Write CSV with the columns ProductID, Category, Brand, Price and Stock and 14 "
    "rows; quote one field that has a special character.",
)
def csv_special_character(response: str) -> bool:
    """The header, 14 rows of five fields, and a quoted field with a mark in it.

    As in the benchmark, rows after the first such field are not looked at.
    """
    names = ("ProductID", "Category", "Brand", "Price", "Stock")
    if not _has_header(response, names, separator=r",[ \t]*"):
        return False
    rows = _csv_rows(response.replace('"', '"""'), delimiter=",")
    if len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(re.match(r'".*[^\d\w\s].*"', field) for field in row):
            return True
    return False


@register(
    "ifbench/custom:csv_quotes",
    description="Write tab-delimited data with the columns StudentID, Subject, Grade, Semester and "
    "Score and three rows; put every field in double quotes.",
)
def csv_quotes(response: str) -> bool:
    """The header and three rows of five fields, all of them quoted."""
    names = ("StudentID", "Subject", "Grade", "Semester", "Score")
    if not _has_header(response, names, separator=r"\t *"):
        return False
    rows = _csv_rows(response.replace('"', '"""'), delimiter="\t")
    fields = [field.strip() for row in rows for field in row]
    return (
        len(rows) == 4
        and all(len(row) == 5 for row in rows)
        and all(field.startswith('"') and field.endswith('"') for field in fields)
    )


@register(
    "ifbench/custom:date_format_list",
    description="List only dates in the format YYYY-MM-DD, separated by commas.",
)
def date_format_list(response: str) -> bool:
    """Dates of Napoleon's lifetime; 00 passes for a month or day, and so does 29 February."""
    return all(_is_date(item.strip()) for item in response.strip().split(","))


def _is_date(text: str) -> bool:
    match = re.match(r"(\d{4})-(\d{2})-(\d{2})$", text)
    if not match:
        return False
    year, month, day = (int(part) for part in match.groups())
    longest = 31 if month in _LONG_MONTHS else 30 if month in _SHORT_MONTHS else 29
    return 1769 <= year <= 1821 and month <= 12 and (day <= longest or month == 0)


def _has_header(text: str, names: tuple[str, ...], *, separator: str) -> bool:
    """Whether the first line holds these names, each quoted or not."""
    header = separator.join(f'(?:{name}|"{name}")' for name in names)
    return re.fullmatch(header, text.split("\n")[0].strip()) is not None


def _csv_rows(text: str, *, delimiter: str) -> list[list[str]]:
    """Rows by the csv module; none if it cannot read them."""
    try:
        return list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error:
        return []
