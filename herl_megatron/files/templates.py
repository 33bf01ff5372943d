"""Text files of a user's own with placeholders, such as `{draft}`, that herl fills."""

from __future__ import annotations

import string
from collections.abc import Collection, Sequence
from pathlib import Path


def check_template(text: str, placeholders: Sequence[str], *, needed: Collection[str]) -> set[str]:
    """Whether `text` can be filled by `str.format`; the placeholders that it names.

    Raises:
        ValueError: an unknown placeholder, a needed one that is missing, a single brace.
    """
    try:
        fields = [f for f in string.Formatter().parse(text) if f[1] is not None]
    except ValueError as error:
        raise ValueError(
            f"{error}; write a brace that is no placeholder as {{{{ or }}}}"
        ) from error
    for _, name, form, conversion in fields:
        if name not in placeholders or form or conversion:
            known = ", ".join(f"{{{known}}}" for known in placeholders)
            raise ValueError(f"{{{name}}} is no placeholder; use {known}, or {{{{ for a brace")
    named = {str(field[1]) for field in fields}
    for name in needed:
        if name not in named:
            raise ValueError(f"the placeholder {{{name}}} is missing")
    return named


def read_text(file: Path) -> str:
    """What a file of UTF-8 says, without a byte order mark and without its last line breaks.

    Raises:
        ValueError: it cannot be read, is not UTF-8, or is blank.
    """
    try:
        text = file.read_text(encoding="utf-8-sig").rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); save it as"
            " UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise ValueError("is empty; write the text there")
    return text
