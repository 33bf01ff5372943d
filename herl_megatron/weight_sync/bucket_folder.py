"""The folder in shared memory that a run's weight buckets lie in, and its end.

It has the same path on every node of a run, so that one bucket's layout holds for all of them.
Free of torch, so that the process that tidies up after a killed driver starts at once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "herl-weights-"
_LOCK = "owner.lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def memory_id(folder: Path = SHARED_MEMORY) -> str:
    """Which shared memory `folder` is: equal for processes that see each other's files there.

    Two Ray nodes may be one machine, and two containers of one machine may share nothing: it is
    the running kernel and the mounted file system that count.
    """
    boot = _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname()
    return f"{boot}:{os.stat(folder).st_dev}"


def check_shared_memory(needed_bytes: int, *, folder: Path = SHARED_MEMORY) -> None:
    """Raise `ValueError` if `folder`'s file system has less than `needed_bytes` free."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise ValueError(
            f"weight sync needs {needed_bytes} bytes of shared memory in {folder} (two buckets), "
            f"but {free} are free; set weight_sync.bucket_bytes to at most {free // 2}, or enlarge "
            f"{folder} (for a container: --shm-size)"
        )


class BucketFolder:
    """Two bucket files in a private folder of shared memory, owned by this process.

    `close` removes them. A folder whose owner was killed is removed by the owner's guard
    (`cluster.orphans`), or else when the next one is made: an owner holds a lock that the kernel
    drops with the process.
    """

    def __init__(
        self, run_name: str = "", *, path: Path | None = None, parent: Path = SHARED_MEMORY
    ) -> None:
        """A new folder in `parent` named after the run; or `path`, that of another node's."""
        parent = parent if path is None else path.parent
        remove_orphans(parent)
        safe_name = "".join(c if c.isalnum() else "_" for c in run_name)
        # Hidden until it is locked: nobody may take it for an orphan in between.
        hidden = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}{safe_name}-", dir=parent))
        self._lock = os.open(hidden / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = hidden.rename(path or parent / hidden.name.removeprefix("."))
        self.paths = (str(self.folder / "bucket_0"), str(self.folder / "bucket_1"))

    def close(self) -> None:
        """Remove the files; may be called twice."""
        if self._lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def remove_orphans(parent: Path = SHARED_MEMORY) -> None:
    """Remove the folders whose owner is gone."""
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            handle = os.open(lock, os.O_RDWR)
        except OSError:  # another user's, or just removed
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(handle)


def free_bytes(folder: Path) -> int:
    """Bytes left on the file system of `folder`."""
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize
