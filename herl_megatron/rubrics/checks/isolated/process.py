"""The near end of a child: asks, waits with a deadline, and ends what misbehaves."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

import psutil

from herl_megatron.rubrics.checks.isolated.gauge import too_much_memory
from herl_megatron.rubrics.checks.isolated.wire import (
    FORK,
    KILL,
    MESSAGE,
    READY,
    STATUS,
    CheckLimits,
    Reply,
    Request,
    pack_request,
    unpack_reply,
)

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]);"
    "from herl_megatron.rubrics.checks.isolated.warden import main; main(int(sys.argv[1]))"
)
_START_S = 60.0
"""Longest start of a warden, and longest end of a child."""
_LOOK_EVERY_S = 0.02
"""How often a child that works is looked at."""
_COUNT_EVERY_S = 0.1
"""How often all that it started is looked at, which takes longer."""
_SEND_S = 10.0


class ChildGone(Exception):
    """The child was ended, or ended itself. `how` is the end of a sentence about what ran."""

    def __init__(self, how: str, *, died: bool = False, late: bool = False) -> None:
        super().__init__(how)
        self.how = how
        self.died = died
        """By itself, or by somebody else than us."""
        self.late = late
        """At its deadline."""


class ChildProcess:
    """One child at a time, and its warden. One thread at a time may use it; any may `close` it."""

    def __init__(self, limits: CheckLimits) -> None:
        self._limits = limits
        self._control: socket.socket | None = None
        self._warden = 0
        self._child = 0
        self._connection: socket.socket | None = None
        self._buffer = bytearray()
        self._number = 0
        self._tasks = 0
        self._bytes = 0

    @property
    def alive(self) -> bool:
        """Whether there is a child that was not ended from here."""
        return self._connection is not None

    def start(self) -> None:
        """A new child; the one before is ended.

        Raises:
            ChildGone: it does not come up.
        """
        self.end()
        try:
            if self._control is None:
                self._start_warden()
            ours, theirs = socket.socketpair()
            with theirs:
                self._child = self._tell(FORK, theirs)
            self._connection = ours
            self._buffer.clear()
            self._tasks = self._bytes = 0
        except (OSError, subprocess.TimeoutExpired) as error:
            self.close()
            raise ChildGone(f"could not be started ({error})") from error

    def settle(self) -> None:
        """What the child has now is its modules'; limits count from here."""
        self._tasks, self._bytes = self._taken()

    def ask(self, request: Request, answers: int = 1) -> int:
        """Send a request that has so many answers; the number of the first.

        Raises:
            ChildGone: the child does not take it.
        """
        assert self._connection is not None, "the child is started first"
        number, self._number = self._number, self._number + answers
        self._connection.settimeout(_SEND_S)
        try:
            self._connection.sendall(pack_request(number, request))
        except OSError as error:
            raise self._gone(error) from error
        return number

    def reply(self, number: int, limit_s: float) -> Reply:
        """The next answer to a request, if it comes in time.

        Raises:
            ChildGone: it does not, or the child passes a limit, dies or answers nonsense. It has
                been ended, with all that it started.
        """
        started = counted = monotonic()
        poller = select.poll()
        assert self._connection is not None, "the child is started first"
        poller.register(self._connection, select.POLLIN)
        while True:
            try:
                found = unpack_reply(self._buffer)
            except ValueError as error:
                self.end()
                raise ChildGone("answered what is no answer") from error
            if found is not None and found.number >= number:
                if found.number == number:
                    return found
                self.end()
                raise ChildGone("answered what is no answer")
            if found is not None:
                continue
            left_s = started + limit_s - monotonic()
            if left_s <= 0:
                self.end()
                raise ChildGone(f"took longer than {limit_s:g} s", late=True)
            if poller.poll(1000 * min(left_s, _LOOK_EVERY_S)):
                self._receive()
                continue
            now = monotonic()
            whole = now - counted >= _COUNT_EVERY_S
            counted = now if whole else counted
            self._inspect(whole=whole)

    def end(self) -> None:
        """Kill the child, if there is one, and all that it started; returns when they are gone."""
        self._drop_connection()
        if self._control is not None and self._child:
            try:
                self._tell(KILL)
            except OSError:
                self.close()  # the warden is gone, and its child with it
        self._child = 0

    def close(self) -> None:
        """End the warden too. From another thread: whoever waits for the child gets `ChildGone`."""
        control, self._control = self._control, None
        if control is not None:
            with suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)  # not closed: another thread may be reading it

    def _start_warden(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.run(  # it goes on in a fork of its own
                [
                    sys.executable,
                    "-P",
                    "-c",
                    _BOOTSTRAP,
                    f"{theirs.fileno()}",
                    json.dumps(sys.path, allow_nan=False),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what checks print is no part of a command's output
                env=os.environ | {"MALLOC_ARENA_MAX": "2"},  # arenas are taken, not used
                start_new_session=True,
                check=False,
                timeout=_START_S,
            )
        ours.settimeout(_START_S)
        self._control = ours
        self._warden = self._answer(READY)

    def _tell(self, message: bytes, connection: socket.socket | None = None) -> int:
        control = self._control
        if control is None:
            raise ConnectionError("closed")
        fds = [] if connection is None else [connection.fileno()]
        socket.send_fds(control, [message], fds)
        return self._answer(message)

    def _answer(self, message: bytes) -> int:
        if self._control is None:
            raise ConnectionError("closed")
        answer = self._control.recv(MESSAGE.size)
        if len(answer) != MESSAGE.size or answer[:1] != message:
            raise ConnectionError("the warden is gone")
        return int(MESSAGE.unpack(answer)[1])

    def _receive(self) -> None:
        assert self._connection is not None
        try:
            chunk = self._connection.recv(1 << 16)
        except OSError as error:
            raise self._gone(error) from error
        if not chunk:
            raise self._gone(None)
        self._buffer += chunk

    def _gone(self, error: OSError | None) -> ChildGone:
        """What became of a child whose connection is closed; ends what is left of it."""
        self._drop_connection()
        try:
            code = self._tell(STATUS)
        except OSError:
            self.close()
            return ChildGone(f"ended its process ({error or 'its warden is gone'})", died=True)
        finally:
            self._child = 0
        if code == -signal.SIGSYS:
            return ChildGone(too_much_memory(self._limits))
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return ChildGone(f"ended its process ({how})", died=True)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _inspect(self, *, whole: bool) -> None:
        """End a child that is dead or past a limit. `whole`: count also what it started."""
        try:
            child = psutil.Process(self._child)
            dead = child.status() == psutil.STATUS_ZOMBIE
            taken = self._taken() if whole else (0, child.memory_info().rss)
        except psutil.Error:
            dead = True
        if dead:  # also where something that it started holds its connection open
            raise self._gone(None)
        tasks, resident_bytes = taken
        if tasks - self._tasks > self._limits.tasks:
            self.end()
            raise ChildGone(f"ran more than {self._limits.tasks} threads and processes")
        if resident_bytes - self._bytes > self._limits.memory_bytes:
            self.end()
            raise ChildGone(too_much_memory(self._limits))

    def _taken(self) -> tuple[int, int]:
        """Threads and processes of the child and all that it started, and their memory, bytes."""
        tasks = resident_bytes = 0
        for process in _below(self._warden):
            try:
                tasks += process.num_threads()
                resident_bytes += process.memory_info().rss
            except psutil.Error:
                pass  # it has ended
        return tasks, resident_bytes


def _below(pid: int) -> Iterator[psutil.Process]:
    try:
        yield from psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return
