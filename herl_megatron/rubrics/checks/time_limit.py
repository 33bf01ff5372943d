"""A time limit on one check: parameters may be regular expressions that backtrack for ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class CheckTimeout(Exception):
    """The check did not finish in time."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `CheckTimeout` in the body after `seconds`; None sets no limit.

    It works by SIGALRM, which Python's regular expressions look for while they match, and so only
    in the main thread of a process (where a Ray worker runs its calls).
    """
    if seconds is None:
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise CheckTimeout

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
