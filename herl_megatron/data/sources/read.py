"""Source rows from files, or through `datasets` from a folder of data files or the Hub.

JSON is read by this module, line by line: rows of one file may differ in their keys and types (as
HIR-16K's do), a broken line is one rejected row and not the end, and every row has its line number.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herl_megatron.config.hub import hub_answers
from herl_megatron.config.proxies import by_way_of
from herl_megatron.data.sources.common import SourceRow
from herl_megatron.files.os_errors import absent
from herl_megatron.files.strict_json import check_levels, parse_json

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class BrokenRow:
    """What could not be read as a row; `data` is its text."""

    number: int
    data: str
    reason: str
    split: str = ""


RawRow = SourceRow | BrokenRow


@dataclass(frozen=True)
class Input:
    """Where rows come from. `split` names the part that a file holds, or the one to take.

    place: a file (.jsonl, .json, .csv, .parquet, all but the last also .gz), a folder of data
        files, or a dataset's name on the Hub. config: the Hub dataset's configuration.
    """

    place: str
    split: str = ""
    config: str = ""


def parse_input(text: str, config: str) -> Input:
    """`[SPLIT=]PLACE`."""
    split, equals, place = text.partition("=")
    if equals and split and "/" not in split:
        return Input(place, split, config)
    return Input(text, "", config)


def read_rows(source: Input) -> list[RawRow]:
    """All rows. ValueError, with the fix, for a place without rows."""
    path = Path(source.place).expanduser()
    if not absent(path, "file"):
        rows = list(_file_rows(path, source.split))
    elif (
        source.place
        and not absent(path, "folder")
        or _HUB_NAME.fullmatch(source.place)
        and not _looks_like_a_file(path)
    ):
        rows = list(_dataset_rows(source, local=path.is_dir()))
    else:
        raise ValueError(
            f"{source.place}: there is no such file or folder, and it is no Hub name either "
            "(owner/name)"
        )
    if not rows:
        raise ValueError(f"{source.place}: there are no rows")
    return rows


def fingerprint(source: Input) -> str:
    """SHA-256 of an input file, empty for a folder or a Hub dataset."""
    path = Path(source.place).expanduser()
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _looks_like_a_file(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(_SUFFIXES)


def _file_rows(path: Path, split: str) -> Iterator[RawRow]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_rows(path, split)
        return
    if not name.endswith(_SUFFIXES):
        raise ValueError(f"{path}: unknown kind of file; give {', '.join(_SUFFIXES)} (or .gz)")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if name.endswith(".csv"):
        yield from _csv_rows(data, path, split)
        return
    whole = _whole_document(data) if name.endswith(".json") else None
    if whole is None:
        yield from _lines(data, split)
    else:
        for number, row in enumerate(whole, start=1):
            try:
                check_levels(row)
            except ValueError as error:
                yield BrokenRow(number, f"row {number} of {path.name}", str(error), split)
                continue
            yield _row(row, number, split)


def _whole_document(data: bytes) -> list[Any] | None:
    """The rows of a file that is one JSON list, or an object of lists (one per category).

    None for anything else: many a .json file holds one object per line.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, list):
        return document
    if isinstance(document, Mapping) and all(isinstance(v, list) for v in document.values()):
        return [row for rows in document.values() for row in rows]
    return None


def _lines(data: bytes, split: str) -> Iterator[RawRow]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode("utf-8-sig"), nan=True)
            check_levels(row)
        except ValueError as error:
            yield BrokenRow(number, line.decode("utf-8", errors="replace"), str(error), split)
            continue
        yield _row(row, number, split)


def _csv_rows(data: bytes, path: Path, split: str) -> Iterator[RawRow]:
    """Rows under the names of the first line; a row of more or fewer columns is a broken one."""
    try:
        text = data.decode("utf-8-sig")
        table = csv.reader(io.StringIO(text, newline=""), strict=True)
        names = next(table, [])
        if len(set(names)) < len(names) or not any(names):
            raise ValueError("its first line must name the columns, each by another name")
        for number, values in enumerate(filter(None, table), start=1):
            if len(values) != len(names):
                reason = f"{len(values)} columns; the first line names {len(names)}"
                yield BrokenRow(number, repr(values), reason, split)
                continue
            yield SourceRow(number, dict(zip(names, values, strict=True)), split)
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}: is no CSV that can be read: {error}") from error


def _row(row: object, number: int, split: str) -> RawRow:
    if not isinstance(row, Mapping):
        return BrokenRow(number, repr(row), "not an object with named keys", split)
    return SourceRow(number, row, split)


def _parquet_rows(path: Path, split: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: is no Parquet file that can be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield SourceRow(number, row, split)


def _dataset_rows(source: Input, *, local: bool) -> Iterator[RawRow]:
    """Rows of every split, or of the one that was asked for."""
    import datasets  # Takes a second, and files need none of it.

    try:
        with _no_endless_retries(local):
            loaded = datasets.load_dataset(source.place, source.config or None)
    except ConnectionError as error:
        raise ValueError(_no_network(source.place, error)) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(
            f"{source.place}: datasets cannot load it: {error}{cause}; if its rows differ in "
            f"shape, give {'the file itself' if local else 'a downloaded file'} as --input"
        ) from error
    if source.split and source.split not in loaded:
        raise ValueError(
            f"{source.place} has no split {source.split!r}, it has {', '.join(map(str, loaded))}"
        )
    for name in [source.split] if source.split else loaded:
        for number, row in enumerate(loaded[name], start=1):
            yield SourceRow(number, row, str(name))


@contextmanager
def _no_endless_retries(local: bool) -> Iterator[None]:
    """Where the Hub does not answer, have `datasets` look into its cache alone: its clients would
    ask again for half a minute."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    if not local and not hub_answers():
        for place in places:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _no_network(name: str, error: Exception) -> str:
    from huggingface_hub import constants

    way = by_way_of(constants.ENDPOINT)
    folder = f"downloads/{name.partition('/')[2]}"
    return (
        f"{name}: the Hub cannot be reached ({error}){way}. Where there is network: "
        f"hf download --repo-type dataset {name} --local-dir {folder}; then copy {folder} here and "
        f"give the same command --input {folder}, or a file in it: --input {folder}/FILE"
    )
