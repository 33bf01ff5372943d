"""Run a command; when it ends, or when we are told to end, leave none of its processes behind.

    python tools/_supervise.py COMMAND [ARGUMENT ...]

Ray starts daemons and workers that leave the command's process group, so they are found by
descent: on Linux this process adopts what its descendants leave behind, and collects it when it
ends. Exit code: the command's,
128 + signal if one ended it, or 70 if the command succeeded but left processes that had to be
killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

_SUBREAPER, _PARENT_DEATH_SIGNAL = 36, 1  # prctl(2)
_GRACE_S = 15.0
_KILL_S = 5.0
_ORPHANS_LEFT = 70


def main() -> int:
    """Run the command given as arguments."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)  # the shell that started us was killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command by itself
    command = subprocess.Popen(sys.argv[1:], preexec_fn=_default_sigint)
    # Popen.terminate would collect the command, which _wait_for does.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(command.pid, signal.SIGTERM))
    code = command.returncode = _wait_for(command.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has ended; the rest is about to
    code = 128 - code if code < 0 else code
    left = _end_rest()
    if left:
        sys.stderr.write("processes left behind, now killed:\n" + "".join(left))
    return _ORPHANS_LEFT if left and code == 0 else code


def _default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an ignored signal would stay ignored


def _wait_for(pid: int) -> int:
    """Collect adopted processes as they end, until the command does; its exit code."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _collect() -> None:
    """Take the exit codes of all children that have ended, so that none stays a zombie."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _end_rest() -> list[str]:
    """Wait for the remaining descendants, then kill them; one line for each that was killed."""
    end = time.monotonic() + _GRACE_S
    while (rest := _descendants()) and time.monotonic() < end:
        time.sleep(0.1)
    lines = []
    for process in rest:
        try:
            lines.append(f"  {process.pid} {' '.join(process.cmdline())[:150]}\n")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    end = time.monotonic() + _KILL_S
    while _descendants() and time.monotonic() < end:
        time.sleep(0.02)
    return lines


def _descendants() -> list[psutil.Process]:
    """Live descendants; a zombie is its parent's to collect, and ours once that has ended."""
    _collect()
    alive = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    _collect()  # what the zombies' parents left to us meanwhile
    return alive


if __name__ == "__main__":
    sys.exit(main())
