"""All trackers of a run at once, and the wall between them and the run."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from herl_megatron.observability.trackers.protocol import SamplesOf, TextSample, Tracker

logger = logging.getLogger(__name__)

Call = Callable[[Tracker], None]

_MOST_WAITING = 1000
"""Calls that wait for a slow tracker; what comes on top is dropped and counted."""
_GIVE_UP_AFTER = 5
"""Failed calls in a row, after which a tracker is left alone."""
CLOSE_S = 60.0
"""Longest wait for all trackers at the end of the run, while they send what they still hold."""


class Trackers:
    """Hands every call to each tracker, in a thread of its own.

    builders: how to open each, by the name that messages use. Nothing here raises or waits on a
    tracker but `close`, and that for at most `CLOSE_S`.
    """

    def __init__(self, builders: Mapping[str, Callable[[], Tracker]]) -> None:
        self._workers = [_Worker(name, build) for name, build in builders.items()]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`; NaN and infinity are left out, which some servers refuse."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._tell(lambda tracker: tracker.log(step, finite))

    def log_samples(self, step: int, name: SamplesOf, samples: Sequence[TextSample]) -> None:
        """See `Tracker.log_samples`."""
        if samples:
            self._tell(lambda tracker: tracker.log_samples(step, name, samples))

    def close(self, *, ended_well: bool) -> None:
        """See `Tracker.close`. Also says how much each one missed."""
        for worker in self._workers:
            worker.end(lambda tracker: tracker.close(ended_well=ended_well))
        end = time.monotonic() + CLOSE_S
        for worker in self._workers:
            worker.wait(max(end - time.monotonic(), 0.0))

    def _tell(self, call: Call) -> None:
        for worker in self._workers:
            worker.tell(call)


class _Worker:
    """One tracker and its thread."""

    def __init__(self, name: str, build: Callable[[], Tracker]) -> None:
        self._name = name
        self._calls: queue.Queue[Call | None] = queue.Queue()
        self._dropped = 0
        self._failures = 0
        # A daemon: one that hangs for good must not keep the process.
        self._thread = threading.Thread(
            target=self._serve, args=(build,), name=f"herl-tracker-{name}", daemon=True
        )
        self._thread.start()

    def tell(self, call: Call) -> None:
        if self._calls.qsize() < _MOST_WAITING:
            self._calls.put(call)
            return
        self._dropped += 1
        if self._dropped == 1:
            logger.warning(
                "%s does not keep up: %d calls wait; what comes on top is left out there",
                self._name,
                _MOST_WAITING,
            )

    def end(self, last: Call) -> None:
        """Never dropped: without it one that has fallen behind would not send what it holds."""
        self._calls.put(last)
        self._calls.put(None)

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("%s did not end within %.0f s and is left behind", self._name, CLOSE_S)
        if self._dropped:
            logger.warning("%s missed %d calls; metrics.jsonl has all", self._name, self._dropped)

    def _serve(self, build: Callable[[], Tracker]) -> None:
        try:
            tracker = build()
        # Border to a foreign library: its failure is not the run's, nor its `sys.exit`, which would
        # end this thread without a word.
        except (Exception, SystemExit) as error:
            logger.warning(
                "%s cannot be used (%s); the run goes on without it, metrics.jsonl has all",
                self._name,
                _said(error),
            )
            tracker = None
        while (call := self._calls.get()) is not None:
            if tracker is None or self._failures >= _GIVE_UP_AFTER:
                continue
            self._try(call, tracker)

    def _try(self, call: Call, tracker: Tracker) -> None:
        try:
            call(tracker)
            self._failures = 0
        except (Exception, SystemExit) as error:  # as above
            self._failures += 1
            if self._failures == 1:
                logger.warning("%s failed: %s; the run goes on", self._name, _said(error))
            if self._failures == _GIVE_UP_AFTER:
                logger.warning(
                    "%s failed %d times in a row and is left alone; metrics.jsonl has all",
                    self._name,
                    _GIVE_UP_AFTER,
                )


def _said(error: BaseException) -> str:
    """The first line of an error's text, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
