"""Rows out of a JSONL or Parquet file, each with its number; errors name file and line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from herl_megatron.files.os_errors import absent
from herl_megatron.files.strict_json import not_utf8, open_lines, parse_json

_ROWS_AT_ONCE = 1024
_KINDS = {
    b"\x1f\x8b": "compressed by gzip; unpack it (gunzip)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it (unzstd)",
    b"BZh": "compressed by bzip2; unpack it (bunzip2)",
    b"\xfd7zXZ": "compressed by xz; unpack it (unxz)",
    b"PK\x03\x04": "a zip archive; unpack it (unzip)",
    b"PAR1": "a Parquet file; give it a name that ends in .parquet",
    b"\xff\xfe": "in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "in UTF-16; write it in UTF-8 (iconv -f UTF-16 -t UTF-8)",
}
"""What a file that is no JSONL begins with, and what to do with it."""


def rows_of(path: str) -> Iterator[tuple[int, object]]:
    """(line, row) of a JSONL file, blank lines left out; of a `.parquet` file (row number, row).

    Raises:
        ValueError: no such file; it cannot be read, with the line (Parquet: row).
    """
    if problem := absent(path, "file"):
        raise ValueError(f"{path}: there is {problem}")
    rows = _parquet_rows(path) if path.endswith(".parquet") else _json_lines(path)
    try:
        yield from rows
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _json_lines(path: str) -> Iterator[tuple[int, object]]:
    with open(path, "rb") as file:
        begin = file.read(8)
    for kind, what in _KINDS.items():
        if begin.startswith(kind):
            raise ValueError(f"{path}: the file is {what}; rows are read from JSONL or .parquet")
    with open_lines(path) as file:
        for line, text in enumerate(file, start=1):
            if text.strip():
                yield line, _json_row(text, f"{path}:{line}")


def _json_row(text: str, where: str) -> object:
    if problem := not_utf8(text):
        raise ValueError(f"{where}: {problem}")
    try:
        return parse_json(text, fix="every line must be one JSON object")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _parquet_rows(path: str) -> Iterator[tuple[int, object]]:
    import pyarrow  # Imported here: JSONL needs no Arrow.
    import pyarrow.parquet

    unreadable = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
    done, opened = 0, False
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                opened = True
                for row in _python_rows(batch, unreadable):
                    done += 1
                    yield done, row
    except unreadable as error:
        where = f"{path}:{done + 1}" if opened else path
        raise ValueError(
            f"{where}: no Parquet that can be read ({error}); copy the file again or write it anew"
        ) from error


def _python_rows(batch: Any, unreadable: tuple[type[Exception], ...]) -> Iterator[object]:
    """The rows of a batch; one that cannot be read ends it after those before it."""
    try:
        rows = batch.to_pylist()
    except unreadable:  # one by one, to find which
        rows = (batch.slice(index, 1).to_pylist()[0] for index in range(batch.num_rows))
    yield from rows
