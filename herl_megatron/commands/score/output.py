"""The output file of `herl score`: appended to while rows finish, in input order at the end."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from herl_megatron.benchmarks.answered import Answered
from herl_megatron.commands.score.scored_records import (
    Loose,
    is_complete,
    loose_of,
    row_record,
    scores_of,
)
from herl_megatron.data.responses import ResponseRow
from herl_megatron.run.lock import NO_LOCKS
from herl_megatron.types import Prompt, Score

_LONGEST_LINE = 256 << 20
"""Bytes; a longer one is nobody's verdicts."""
_LONGEST_NAME = 200
"""Bytes; locks, totals and temporary files have longer names."""
_HEAD = re.compile(rb'\{"id": "(?:[^"\\]|\\.)*"')
_ID = re.compile(rb'\{"id": "(?:[^"\\]|\\.)*\\?$')
"""The id of a line, whole, or cut before its end."""


class ScoreFile:
    """One line per row. What was written before an interruption is kept, once.

    Every line says what it was made from: a hash of the row and of `settings` (whatever else the
    scores depend on). A torn last line and lines with an unscored response are made again.

    One process at a time has the file, from here to `close`: a second one would score, and ask the
    judge, once more for everything.

    loose: whether a row needs loose verdicts, too.

    Raises ValueError if `path` is no regular file or holds something else than scores of these
    rows, or if another process has it.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[ResponseRow],
        *,
        settings: str,
        loose: Callable[[Prompt], bool] = lambda _: False,
    ) -> None:
        self._path = path
        self._loose = loose
        self._rows = {row.prompt.id: row for row in rows}
        self._settings = settings
        self._lines: dict[str, bytes] = {}
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path.with_name(f"{path.name}.herl-lock"), path)
        try:
            if not self._read():
                write_whole(path, b"".join(self._lines.values()))
            self._file = path.open("ab")
        except BaseException:
            self._lock.close()
            raise

    def missing(self) -> list[ResponseRow]:
        """The rows without a line, in input order."""
        return [row for name, row in self._rows.items() if name not in self._lines]

    def add(self, row: ResponseRow, scores: Sequence[Score], loose: Loose = ()) -> None:
        """Append the line of a row; once this returns a kill cannot lose it."""
        record = row_record(row, scores, self._made_from(row), loose=loose)
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        self._lines[row.prompt.id] = line.encode() + b"\n"
        self._file.write(self._lines[row.prompt.id])
        self._file.flush()

    def close(self) -> None:
        """End appending and let others in; what is there is kept. May be called twice."""
        self._file.close()
        if not self._lock.closed:
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()

    def finish(self) -> None:
        """Put the lines of all rows in input order, by rename; call `close` after it."""
        assert not self.missing(), "finished with rows that have no scores"
        self._file.close()
        write_whole(self._path, b"".join(self._lines[name] for name in self._rows))

    def scores(self) -> Iterator[tuple[ResponseRow, Score]]:
        """Every response's score, rows in input order."""
        for name, row in self._rows.items():
            if name in self._lines:
                for score in scores_of(row, json.loads(self._lines[name])):
                    yield row, score

    def answered(self) -> Iterator[Answered]:
        """The prompts with the scores of their responses, in input order."""
        for name, row in self._rows.items():
            if name in self._lines:
                record = json.loads(self._lines[name])
                yield Answered(row.prompt, tuple(scores_of(row, record)), loose_of(record))

    def _read(self) -> bool:
        """Take over what an earlier run left; False if the file has lines to be dropped."""
        if not self._path.exists():
            return True
        whole = True
        with self._path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
                torn = not line.endswith(b"\n") and len(line) < _LONGEST_LINE
                if torn and _is_torn(line):
                    return False
                record = self._record(line, number)
                whole_line = is_complete(record, loose=self._loose(self._rows[record["id"]].prompt))
                if whole_line and record["id"] not in self._lines:
                    self._lines[record["id"]] = line
                else:
                    whole = False
        return whole

    def _record(self, line: bytes, number: int) -> Mapping[str, Any]:
        where = f"{self._path}:{number}"
        fix = "name another file with --out, or remove this one to score everything again"
        try:
            record = json.loads(line)
            name, made_from = record["id"], record["made_from"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ValueError(f"{where}: not a line of `herl score`; {fix}") from error
        if name not in self._rows:
            raise ValueError(f"{where}: the row {name!r} is not in the input; {fix}")
        if made_from != self._made_from(self._rows[name]):
            raise ValueError(
                f"{where}: the row {name!r} was scored with another content or other settings "
                f"than {self._settings}; {fix}"
            )
        return dict(record)

    def _made_from(self, row: ResponseRow) -> str:
        return hashlib.sha256(f"{row.digest} {self._settings}".encode()).hexdigest()[:16]


def _is_torn(line: bytes) -> bool:
    """Whether this is the beginning of a line of `row_record`, as a kill leaves it; what somebody
    else wrote without a line's end is not."""
    for begin in (_HEAD.match(line), _ID.match(line)):
        if begin is not None:
            rest, whole = line[begin.end() :], b', "made_from": "'
            return rest.startswith(whole) or whole.startswith(rest)
    return b'{"id": "'.startswith(line)


def check_replaceable(path: Path) -> None:
    """Raise ValueError if `path` is there and is no regular file (a device has no end, and neither
    it, nor a folder, nor what a link leads to is replaced by a rename), or its name is too long."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is no regular file; name a file that is new or herl's own")
    if len(path.name.encode()) > _LONGEST_NAME:
        raise ValueError(f"{path.name!r:.60}: over {_LONGEST_NAME} bytes; name another file")


def _locked(lock: Path, path: Path) -> IO[str]:
    """The lock of the output `path`, which the kernel drops with this process.

    Raises:
        ValueError: another process has it, or something else lies under its name.
    """
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file() or lock.stat().st_size):
        raise ValueError(f"{lock} is no lock of `herl score`, which makes one there; move it")
    while True:
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(
                f"--out {path}: another `herl score` is writing it; wait for its end, or name"
                " another file"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
            return file  # a file system without locks
        try:
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # its owner removed it in between


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by rename, so that it is there whole or as it was."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
