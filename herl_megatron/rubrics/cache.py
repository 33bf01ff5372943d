"""Judgements kept in SQLite by the hash of what was judged; processes may share the file."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_log = logging.getLogger(__name__)
_BUSY_TIMEOUT_S = 30.0


class JudgementCache:
    """Text by key. All calls go through one thread, so the event loop never waits for the disk.

    The file must lie on a local disk: SQLite's write-ahead log needs shared memory.

    Raises:
        ValueError: the file cannot be opened or is no such database.
    """

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge-cache")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._thread.submit(_connect, path).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise ValueError(
                f"judge.cache {str(path)!r} cannot be used: {error}; name another file, or none"
            ) from error

    async def get(self, key: str) -> str | None:
        """What was kept under `key`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, key)

    async def put(self, key: str, value: str, *, replace: bool = False) -> None:
        """Keep `value`; the first value of a key stays, whichever process wrote it, unless
        `replace` says that it cannot be read."""
        verb = "REPLACE" if replace else "IGNORE"
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._put, verb, key, value)

    def close(self) -> None:
        """Finish what is under way and close the file."""
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()

    def _get(self, key: str) -> str | None:
        try:
            row = self._db.execute(
                "SELECT CAST(value AS BLOB) FROM judgements WHERE key = ?", (key,)
            ).fetchone()
        except sqlite3.Error as error:  # the judge can still be asked
            _log.warning("a judgement could not be looked up: %s", error)
            return None
        if row is None:
            return None
        return bytes(row[0]).decode("utf-8", errors="replace")  # damage shows when it is read

    def _put(self, verb: str, key: str, value: str) -> None:
        try:
            with self._db:
                self._db.execute(f"INSERT OR {verb} INTO judgements VALUES (?, ?)", (key, value))
        except sqlite3.Error as error:
            _log.warning("a judgement could not be kept: %s", error)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    with db:
        db.execute(
            "CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
        )
    return db
