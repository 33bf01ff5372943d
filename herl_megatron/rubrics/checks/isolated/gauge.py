"""In the child: what a check took, noted where the check cannot reach it.

An allocation that fails at a limit is an exception that the check may catch; so the limit of the
kernel (RLIMIT_DATA) lies above ours, and after each check the peak tells whether ours was passed.
"""

from __future__ import annotations

import _thread
import os
import resource
import threading
from collections.abc import Callable
from typing import Any

from herl_megatron.rubrics.checks.isolated.kernel import kill_at_huge_request
from herl_megatron.rubrics.checks.isolated.wire import CheckLimits


class Gauge:
    """Limits of this process, set when it is made; `settle` once the modules are imported."""

    def __init__(self, limits: CheckLimits) -> None:
        self._limits = limits
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._peak_allowed = 0
        self._threads = self._python_threads = 0
        self._too_many_threads = False
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._limit_data()
        self._start: Callable[..., int] = _thread.start_new_thread
        for module, name in ((_thread, "start_new_thread"), (threading, "_start_new_thread")):
            setattr(module, name, self._start_thread)

    def settle(self) -> None:
        """What the process has now is the modules'; limits count from here."""
        self._python_threads = _thread._count()
        self._threads = self._read(b"Threads:")
        self._limit_data()
        allowed = self._read_bytes(b"VmSize:") + self._limits.memory_bytes
        self._peak_allowed = max(allowed, self._read_bytes(b"VmPeak:"))
        # Not before: an error of the import says at which line.
        kill_at_huge_request(self._limits.memory_bytes)

    def exceeded(self) -> str:
        """Which limit has been passed since `settle`, as what the check did; "" if none."""
        if self._too_many_threads:
            most = self._limits.tasks
            return f"started too many threads (more than {most}, or than the machine has)"
        if self._read_bytes(b"VmPeak:") > self._peak_allowed:
            return too_much_memory(self._limits)
        return ""

    def threads_left(self) -> bool:
        """Whether Python threads run that did not after the import."""
        return bool(_thread._count() > self._python_threads)

    def _limit_data(self) -> None:
        """Twice our limit: whoever meets it has passed ours before, as no step is larger."""
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = self._read_bytes(b"VmData:") + 2 * self._limits.memory_bytes
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))

    def _read_bytes(self, name: bytes) -> int:
        return self._read(name) << 10  # it is given in KiB

    def _read(self, name: bytes) -> int:
        """The number in a line of /proc/self/status."""
        text = os.pread(self._status, 4096, 0)
        return int(text[text.index(name) + len(name) :].split(None, 1)[0])

    def _start_thread(self, *arguments: Any, **more: Any) -> int:
        """`_thread.start_new_thread`, noting what a check's `except` would hide."""
        if self._read(b"Threads:") - self._threads >= self._limits.tasks:
            self._too_many_threads = True
            raise RuntimeError("can't start new thread: there are too many")
        try:
            return self._start(*arguments, **more)
        except RuntimeError:
            self._too_many_threads = True  # for the machine
            raise


def too_much_memory(limits: CheckLimits) -> str:
    """What a check did that passed the limit of memory."""
    return f"took more than {limits.memory_bytes:,} bytes of memory (scoring.check_memory_bytes)"
