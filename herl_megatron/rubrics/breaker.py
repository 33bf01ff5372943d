"""Pauses all calls to a judge that fails too often, until it answers again."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from time import monotonic

from herl_megatron.rubrics.failures import CallFailed, JudgeError

_log = logging.getLogger(__name__)
_LONGEST_WAIT_S = 60.0


class Breaker:
    """Counts failures among the latest `window` calls; from `share` of the window on it pauses.

    In a pause it probes the judge, after waits that double, and opens the way at the first answer.
    A probe that is refused for good, or a pause beyond `max_pause_s`, ends it with a JudgeError
    for everybody who waits.
    """

    def __init__(
        self,
        *,
        window: int,
        share: float,
        first_wait_s: float,
        max_pause_s: float,
        name: str,
        probe: Callable[[], Awaitable[None]],
    ) -> None:
        self._latest: deque[bool] = deque(maxlen=window)
        self._limit = share * window
        self._first_wait_s = first_wait_s
        self._max_pause_s = max_pause_s
        self._name = name
        self._probe = probe
        self._way = asyncio.Event()
        self._way.set()
        self._pause: asyncio.Task[None] | None = None
        self._since = 0.0
        self._paused_s = 0.0
        self._end: JudgeError | None = None
        self.trips = 0
        """Pauses so far; who failed may compare it to learn whether a pause began meanwhile."""

    @property
    def is_paused(self) -> bool:
        """Whether calls have to wait."""
        return not self._way.is_set()

    def paused_s(self) -> float:
        """Seconds of all pauses so far, the current one included."""
        return self._paused_s + (monotonic() - self._since if self.is_paused else 0.0)

    async def passage(self) -> None:
        """Return when a call may be made.

        Raises:
            JudgeError: the judge did not come back.
        """
        await self._way.wait()
        if self._end is not None:
            raise self._end

    def record(self, *, failed: bool, reason: str = "") -> None:
        """One call came to its end; those that end in a pause count for nothing."""
        if self.is_paused:
            return
        self._latest.append(failed)
        failures = sum(self._latest)
        if failed and failures >= self._limit:
            self.trip(f"{failures} of the latest {len(self._latest)} calls failed: {reason}")

    def trip(self, reason: str, *, wait_s: float = 0.0) -> None:
        """Pause now; the first probe comes after `wait_s` at the earliest."""
        if self.is_paused or self._end is not None:
            return
        self.trips += 1
        self._since = monotonic()
        self._way.clear()
        self._pause = asyncio.create_task(self._until_back(reason, wait_s))

    def end(self, error: JudgeError) -> None:
        """No call any more: everybody who asks from now on gets `error`."""
        self._end = self._end or error

    async def close(self) -> None:
        """End a pause that nobody waits for any more."""
        if self._pause is not None:
            self._pause.cancel()
            await asyncio.gather(self._pause, return_exceptions=True)

    async def _until_back(self, reason: str, wait_s: float) -> None:
        started = f"{datetime.now():%H:%M:%S}"
        _log.error(
            "scoring pauses since %s: judge %s, %s. What is scored is kept. It goes on as soon as"
            " the judge answers, and the run ends after %g s (judge.max_pause_s) without it",
            started, self._name, reason, self._max_pause_s,
        )  # fmt: skip
        wait_s, longest = max(self._first_wait_s, wait_s), max(self._first_wait_s, _LONGEST_WAIT_S)
        try:
            while (left_s := self._max_pause_s - (monotonic() - self._since)) > 0:
                await asyncio.sleep(min(wait_s, left_s))
                wait_s = min(2 * wait_s, longest)
                try:
                    await self._probe()
                except CallFailed as failure:
                    reason = str(failure)
                    _log.warning("paused since %s: the judge is not back: %s", started, failure)
                else:
                    _log.info("the judge is back; scoring goes on after %.1f s", self._length_s())
                    return
            self._end = JudgeError(
                f"the judge {self._name} did not answer for {self._max_pause_s:g} s"
                f" (judge.max_pause_s), since {started}: {reason}"
            )
        except JudgeError as error:
            self._end = error
        finally:
            self._paused_s += self._length_s()
            self._latest.clear()
            self._way.set()

    def _length_s(self) -> float:
        return monotonic() - self._since
