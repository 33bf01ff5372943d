"""A time limit on one check in this process, that no check can swallow.

Parameters may be regular expressions that backtrack for ever, and a library may have an `except:`.
The limit therefore is no `Exception`, is raised again for as long as the check runs, and is noted
where the check cannot reach it: a check that was over its limit has no verdict, whatever it
returned.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_AGAIN_S = 0.1
"""How long after it was swallowed the limit is raised again."""
_LONGEST_S = 1e6
"""The kernel's timers take no infinity; eleven days stand for it."""


class CheckTimeout(BaseException):
    """The check did not finish in time: leave it."""


@dataclass(frozen=True)
class Finished(Generic[T]):
    """What the work returned in time."""

    value: T


class _Watch:
    """What happened while the work ran. Its handlers raise only while `running`."""

    def __init__(self, on_interrupt: Any) -> None:
        self.running = False
        self.expired = False
        self.on_interrupt = on_interrupt
        self.interrupt_waits = False
        self.raised: BaseException | None = None

    def expire(self, signum: int, frame: FrameType | None) -> None:
        self.expired = True
        if self.running:
            raise CheckTimeout

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self.running:
            self.interrupt_waits = True
            return
        try:
            self.on_interrupt(signum, frame)
        except BaseException as error:  # Kept for the end: the check may swallow it.
            self.raised = error
            raise


def run_limited(work: Callable[[], T], seconds: float | None) -> Finished[T] | None:
    """Run `work`; None if it took longer than `seconds` (None sets no limit).

    It works by SIGALRM, which Python's regular expressions look for while they match, and so only
    in the main thread of a process (where a Ray worker runs its calls). A Ctrl-C does what it does
    elsewhere, whatever the work makes of it; so a KeyboardInterrupt that the work hands back as
    its value is its own.
    """
    if threading.current_thread() is not threading.main_thread():
        assert seconds is None, "a check is limited in time in the main thread only"
        return Finished(work())
    watch = _Watch(signal.getsignal(signal.SIGINT))
    started = monotonic()
    on_alarm: Any = None
    finished: Finished[T] | None = None
    # Not a context manager: the alarm would also go off inside of contextlib and skip the end.
    try:
        if callable(watch.on_interrupt):
            signal.signal(signal.SIGINT, watch.interrupt)
        if seconds is not None:
            on_alarm = signal.signal(signal.SIGALRM, watch.expire)
            signal.setitimer(signal.ITIMER_REAL, min(seconds, _LONGEST_S), _AGAIN_S)
        try:
            watch.running = True
            finished = Finished(work())
        finally:
            watch.running = False
    except CheckTimeout:
        pass
    finally:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if on_alarm is None else on_alarm)
        if callable(watch.on_interrupt):
            signal.signal(signal.SIGINT, watch.on_interrupt)
    if watch.raised is not None:
        raise watch.raised
    if watch.interrupt_waits:
        watch.on_interrupt(signal.SIGINT, None)
    late = seconds is not None and monotonic() - started >= seconds
    return None if late or watch.expired else finished
