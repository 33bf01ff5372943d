"""What a process is doing right now, by name, so that nobody takes a long wait for a hang.

One list for the process, like its log: whatever starts something that lasts says so here, and the
console shows it. Phases may overlap: engines and trainer start beside each other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from herl_megatron.observability.durations import duration

logger = logging.getLogger(__name__)

FIRST_REMINDER_S = 60.0
"""A phase that lasts is named in the log after so many seconds, then after twice as many."""
_LOOK_EVERY_S = 1.0


@dataclass(eq=False)
class _Phase:
    name: str
    began: float
    remind_after_s: float = field(default=FIRST_REMINDER_S)


class Phases:
    """The phases that are under way; any thread may ask. `now` returns seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._open: list[_Phase] = []

    @contextmanager
    def __call__(self, name: str, *, announce: bool = False) -> Iterator[None]:
        """The block is phase `name`. With `announce` its begin is logged, and its seconds if it
        ends well; an error says itself what went wrong."""
        phase = _Phase(name, self._now())
        with self._lock:
            self._open.append(phase)
        if announce:
            logger.info("%s ...", name)
        try:
            yield
            if announce:
                logger.info("%s: done in %s", name, duration(self._now() - phase.began))
        finally:
            with self._lock:
                self._open.remove(phase)

    def current(self) -> str:
        """The phases under way with their seconds, the earliest first; empty between two."""
        now = self._now()
        with self._lock:
            return ", ".join(f"{p.name} {duration(now - p.began)}" for p in self._open)

    def overdue(self) -> list[str]:
        """A line for each phase whose next reminder is due; each is given once."""
        now, lines = self._now(), []
        with self._lock:
            for phase in self._open:
                passed = now - phase.began
                if passed >= phase.remind_after_s:
                    lines.append(f"{phase.name}: under way for {duration(passed)}")
                    while phase.remind_after_s <= passed:
                        phase.remind_after_s *= 2
        return lines

    @contextmanager
    def reminding(self) -> Iterator[None]:
        """While the block lasts, phases that take long are named in the log."""
        ended = threading.Event()

        def remind() -> None:
            while not ended.wait(_LOOK_EVERY_S):
                for line in self.overdue():
                    logger.info("%s", line)

        thread = threading.Thread(target=remind, name="herl-phases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def counted(doing: str, count: int, what: str) -> str:
    """`starting 1 trainer rank`, `starting 2 trainer ranks`."""
    return f"{doing} {count} {what}{'' if count == 1 else 's'}"


phases = Phases()
"""Of this process."""
