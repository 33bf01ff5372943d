"""Where a run's wall time goes, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from herl_megatron.observability.phases import phases


class Timers:
    """Adds up seconds per phase: `with timers("train"): ...`; the console names it meanwhile.

    Phases must not nest, so that they add up to the whole; what lies outside of all phases is
    reported as `other`. `now` returns seconds and never runs backwards.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._start = self._lap_start = now()
        self._total_s: dict[str, float] = {}
        self._lap_s: dict[str, float] = {}
        self._running: str | None = None

    @contextmanager
    def __call__(self, phase: str, *, announce: str = "") -> Iterator[None]:
        """Time the block as part of `phase`, whether it ends well or not.

        announce: what to call it in the log, where its begin and end are said.
        """
        assert self._running is None, f"phase {phase!r} was started inside {self._running!r}"
        self._running = phase
        start = self._now()
        try:
            with phases(announce or phase, announce=bool(announce)):
                yield
        finally:
            passed = self._now() - start
            self._running = None
            self._total_s[phase] = self._total_s.get(phase, 0.0) + passed
            self._lap_s[phase] = self._lap_s.get(phase, 0.0) + passed

    def lap(self) -> dict[str, float]:
        """Seconds per phase since the last call (a step's split), with `other` and `total`."""
        now = self._now()
        split = _with_rest(self._lap_s, now - self._lap_start)
        self._lap_s, self._lap_start = {}, now
        return split

    def totals(self) -> dict[str, float]:
        """Seconds per phase since the start, in order of first use, with `other` and `total`."""
        return _with_rest(self._total_s, self._now() - self._start)


def _with_rest(phases_s: dict[str, float], total_s: float) -> dict[str, float]:
    rest = max(total_s - sum(phases_s.values()), 0.0)  # rounding may leave -1e-17
    return phases_s | {"other": rest, "total": total_s}
