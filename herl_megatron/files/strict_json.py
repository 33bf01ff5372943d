"""JSON that says one thing: in UTF-8, each key of an object once, no number that is none.

What Python's reader accepts beyond that reaches a run as something that nobody wrote: of two equal
keys the last one wins, half a character ends the run at the step that draws it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herl_megatron.files.os_errors import absent

_MOST_LEVELS = 100
"""Of objects and lists within each other; Python's own functions give up at about a thousand."""
_MOST_BITS = 64
"""Of a whole number: what all readers of JSON and Parquet can hold."""
_HALVES = "surrogateescape"
"""How bytes that are not UTF-8 are read, so that the line that they are in can be named."""


def parse_json(text: str, *, fix: str = "mend it", nan: bool = False) -> Any:
    """The value of a JSON text. fix: what to do about a text that is none. nan: whether NaN and
    infinity are taken, as some write them.

    Raises:
        ValueError: it is none, with line (of several) and column; a key is given twice in one
            object; NaN or infinity; a number or nesting that is too large to be read.
    """
    constant = float if nan else _refuse
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.strip() else ""
        raise ValueError(f"not JSON ({error.msg} at {line}column {error.colno}); {fix}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deep); flatten it") from error
    except ValueError as error:
        if "int_max_str_digits" in str(error):
            said = "not JSON that can be read (a whole number of thousands of digits); shorten it"
            raise ValueError(said) from error
        raise


def check_levels(value: object) -> None:
    """Raise ValueError for a value of more than 100 levels: not even its text could be shown."""
    left: list[tuple[object, int]] = [(value, 0)]
    while left:
        item, level = left.pop()
        if level > _MOST_LEVELS:
            raise ValueError(f"nested more than {_MOST_LEVELS} levels deep; flatten it")
        if isinstance(item, Mapping):
            item = list(item.values())
        if isinstance(item, list | tuple):
            left += [(each, level + 1) for each in item]


def check_values(value: object, where: str) -> None:
    """Look through everything in a value that was read, from JSON or Parquet.

    Raises:
        ValueError: with the place in it, half a character in a text, a whole number over 64 bits,
            more than 100 levels.
    """
    _check(value, where, level=0)


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file that others wrote; of equal keys the last wins, as it does for
    them.

    Raises:
        ValueError: it cannot be read, is not in UTF-8, not JSON, or something else than an object.
    """
    fix = "download or copy it again"
    if problem := absent(path, "file"):  # a pipe would be waited for
        raise ValueError(f"{path} cannot be read: {problem}; {fix}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}; {fix}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {_short(found)}, not an object with named keys; {fix}")
    return found


def open_lines(path: str) -> Any:
    """A text file for reading line by line; `half_character` finds what was not UTF-8 in it."""
    return open(path, encoding="utf-8-sig", errors=_HALVES)


def not_utf8(line: str) -> str:
    """Why a line of `open_lines` was not UTF-8, or the empty string."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = line[error.start].encode(errors=_HALVES)[0]
        return (
            f"not UTF-8 (byte 0x{byte:02x} behind {error.start} characters); write the file in"
            " UTF-8 (iconv -f ENCODING -t UTF-8)"
        )
    return ""


def _check(value: object, where: str, *, level: int) -> None:
    if level > _MOST_LEVELS:
        raise ValueError(
            f"{where[:60]}...: nested more than {_MOST_LEVELS} levels deep; flatten it"
        )
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError(
            f"{where} is a whole number of {value.bit_length()} bits; give one of at most"
            f" {_MOST_BITS}, or a text"
        )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(key, f"a key of {'the row' if where == 'row' else where}")
            _check(item, f"{where}.{key}" if where != "row" else str(key), level=level + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]", level=level + 1)


def _check_text(text: object, where: str) -> None:
    if not isinstance(text, str) or text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{where} holds half a character at position {error.start + 1}, {half!r} (a lone"
            " surrogate), which is no text; write the whole character or leave it out"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(
                f"the key {key!r} is given twice in one object, with {_short(found[key])} and"
                f" {_short(value)}; keep one"
            )
        found[key] = value
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"not JSON ({constant} is no number of JSON); write null, or leave it out")


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a whole number of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
