"""One process at a time writes in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import Self

from herl_megatron.config.paths import LOCK_FILE

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
            ValueError: a living process holds it; says which.
        """
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise ValueError(
                f"run.dir/run.name: another run is writing in {folder} ({owner}); wait for its end"
                " or choose another run.name"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            logger.warning("%s has no file locks: start no second run there", folder)
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return cls(handle)

    def release(self) -> None:
        """Let the next run in; may be called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
