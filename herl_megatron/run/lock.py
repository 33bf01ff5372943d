"""One process at a time writes in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import Self

from herl_megatron.files.run_files import LOCK_BEGIN, LOCK_FILE

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file lock fails with on some cluster file systems."""


class RunLock:
    """The right to write in a run's folder. The kernel drops it with the process that holds it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Lock `folder`, which is made where it is missing.

        Raises:
            ValueError: a living process holds it, and which; or it cannot be opened.
        """
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            handle = _open(folder / LOCK_FILE)
            try:
                _lock(handle, folder)
                if _is_still(handle, folder / LOCK_FILE):
                    os.truncate(handle, 0)
                    owner = f"{os.getpid()} on {socket.gethostname()}\n"
                    os.write(handle, LOCK_BEGIN + owner.encode())
                    return cls(handle)
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # the folder was moved in between

    def release(self) -> None:
        """Let the next run in; may be called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise ValueError(
            f"run.dir/run.name: {file} cannot be opened ({error.strerror}); choose another run.name"
        ) from error


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
        raise ValueError(
            f"run.dir/run.name: another run is writing in {folder} ({owner}); wait for its end"
            " or choose another run.name"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s has no file locks: start no second run there", folder)


def _is_still(handle: int, file: Path) -> bool:
    """Whether the opened file is the one under that name."""
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False
