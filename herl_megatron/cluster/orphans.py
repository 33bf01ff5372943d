"""End a local Ray's processes when the driver was killed, and free its shared memory.

Ray's workers leave when init adopts them. Under a subreaper (a container's init, a session manager,
our own `tools/_supervise.py`) somebody else does, and they would stay for ever. So a small process
waits beside the driver: its standard input ends when the driver does, however that happened.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from herl_megatron.files.last_checkpoint import last_checkpoint
from herl_megatron.weight_sync.bucket_folder import remove_orphans

_MARK = "HERL_SESSION"
_DONE = b"done"
_GRACE_S = 3.0  # Ray's own clean-up comes first


@contextmanager
def orphan_guard(folder: Path | None = None, *, run: Path | None = None) -> Iterator[str]:
    """Mark every process that is started inside the block; end them, and remove `folder`, if this
    process is killed. Gives the mark.

    run: of whose folder the last checkpoint is then named, on standard error and in `run.log`.

    An end in order is left to the block's owner.
    """
    session = uuid.uuid4().hex
    environment = {key: value for key, value in os.environ.items() if key != _MARK}
    guard = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "herl_megatron.cluster.orphans",
            session,
            str(folder or ""),
            str(run.absolute() if run else ""),
        ],
        stdin=subprocess.PIPE,
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C in a terminal must not end the guard first
    )
    assert guard.stdin is not None, "the guard was started with a pipe"
    os.environ[_MARK] = session
    try:
        yield session
    finally:
        del os.environ[_MARK]
        with suppress(BrokenPipeError):  # the guard itself was killed: nothing to tell it
            guard.communicate(_DONE, timeout=30)


def kill_marked(session: str, folder: Path | None, *, of: Sequence[str] = ("",)) -> None:
    """Kill every process of the session of whose command line a part begins with one of `of`.

    Its environment carries the session's mark; or, Ray's agents that write their title over their
    environment, it has a file open below the session's folder. Nobody else ends those for a minute
    where their raylet was killed.
    """
    if folder:
        folder = folder.resolve()  # open files are named without links, TMPDIR may be one
    for process in psutil.process_iter():
        try:
            title = process.cmdline()
            if not any(part.startswith(tuple(of)) for part in title):
                continue
            if process.environ().get(_MARK) == session or (
                folder and title[0].startswith("ray::") and _uses(process, folder)
            ):
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # gone meanwhile, or another user's


def _uses(process: psutil.Process, folder: Path) -> bool:
    return any(Path(file.path).is_relative_to(folder) for file in process.open_files())


def main() -> None:
    """Wait for the driver's end; unless it said that it was in order, end what it left."""
    said = sys.stdin.buffer.read()
    if said != _DONE:
        time.sleep(_GRACE_S)
        folder = Path(sys.argv[2]) if sys.argv[2] else None
        kill_marked(sys.argv[1], folder)
        remove_orphans()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        if run := sys.argv[3]:
            say_end(Path(run))


def say_end(run: Path) -> None:
    """Tell of a driver that could not: who kills it gives no time, nor does Ray where the node's
    raylet dies, which aborts it at its next call."""
    log = run / "run.log"
    if not log.is_file():
        return  # it had not begun
    text = (
        f"the driver of {run} was ended without a word: by SIGKILL, by the kernel for want of"
        f" memory (`dmesg`), or by Ray because the node's raylet died; {last_checkpoint(run)}\n"
    )
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
    with log.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
