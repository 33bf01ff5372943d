"""Forks children, and ends all that they start. One per process that has checks of a user.

It is a process of its own because it must outlive whatever a check does, and because an orphan
goes to its nearest ancestor that asked for orphans: nothing that a check starts gets away. It ends
with its control socket, so also when the process at the other end is killed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

import psutil

from herl_megatron.rubrics.checks.isolated.child import serve
from herl_megatron.rubrics.checks.isolated.kernel import adopt_orphans, die_with_parent
from herl_megatron.rubrics.checks.isolated.wire import FORK, KILL, MESSAGE, READY, STATUS

_LOOK_EVERY_MS = 1000
_DYING_S = 0.2
_END_S = 10.0


def main(control_fd: int) -> None:
    """Serve the control socket until it closes."""
    if os.fork():
        os._exit(0)  # no child of whoever started us: Ray kills those of its workers one by one
    control = socket.socket(fileno=control_fd)
    adopt_orphans()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the end of the socket is our sign
    warden = _Warden(control)
    try:
        warden.serve()
    except (ConnectionError, BrokenPipeError):
        pass  # the other end is gone
    finally:
        warden.end_all()
        os._exit(0)


class _Warden:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._child = 0
        self._status: int | None = None

    def serve(self) -> None:
        self._answer(READY, os.getpid())
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        while True:
            if not poller.poll(_LOOK_EVERY_MS):
                self._collect()
                continue
            message, fds, _, _ = socket.recv_fds(self._control, MESSAGE.size, 1)
            if message == FORK:
                self._answer(FORK, self._fork(fds[0]))
            elif message in (KILL, STATUS):
                if message == STATUS:  # it closed its socket, so it is about to die, or broken
                    self._wait_until(time.monotonic() + _DYING_S)
                self.end_all()
                self._answer(message, 0 if self._status is None else self._status)
            else:
                return

    def _answer(self, message: bytes, value: int) -> None:
        self._control.send(MESSAGE.pack(message, value))

    def _fork(self, fd: int) -> int:
        warden = os.getpid()
        self._status = None
        self._child = os.fork()
        if self._child == 0:
            try:
                os.setsid()
                die_with_parent()
                if os.getppid() == warden:  # else it was killed before this took effect
                    self._control.close()
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    signal.signal(signal.SIGHUP, signal.SIG_DFL)
                    serve(socket.socket(fileno=fd))
            except EOFError:
                pass  # no more requests
            finally:
                sys.stdout.flush()
                os._exit(1)
        os.close(fd)
        return self._child

    def _wait_until(self, deadline: float) -> None:
        while self._collect() and self._status is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def _collect(self) -> bool:
        """Take note of what has ended; whether anything is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._status = os.waitstatus_to_exitcode(status)

    def end_all(self) -> None:
        """Kill the child and all that came from it; returns when they are gone.

        All of its session at once, which no fork escapes; then one by one what left the session.
        """
        deadline = time.monotonic() + _END_S
        while self._collect() and time.monotonic() < deadline:
            try:
                os.killpg(self._child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            for process in psutil.Process().children(recursive=True):
                try:
                    process.kill()
                except psutil.Error:
                    pass  # it has ended
            time.sleep(0.002)
