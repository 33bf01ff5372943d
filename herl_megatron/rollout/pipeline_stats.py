"""Where a step's rollout time went, measured from the calls in flight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

WorkKind = Literal["generation", "scoring"]


@dataclass(frozen=True)
class PipelineStats:
    """One run of the pipeline.

    generation_s, scoring_s: wall time with at least one such call in flight.
    scoring_exposed_s: scoring time with no generation in flight, which the step waits for.
    rollout_tokens, revision_tokens: tokens sampled.
    """

    groups: int
    wall_s: float
    generation_s: float
    scoring_s: float
    scoring_exposed_s: float
    rollout_tokens: int
    revision_tokens: int

    def metrics(self) -> dict[str, float]:
        """The numbers by metric name."""
        return {
            "time/pipeline_s": self.wall_s,
            "time/generation_s": self.generation_s,
            "time/scoring_s": self.scoring_s,
            "time/scoring_exposed_s": self.scoring_exposed_s,
            "rollout/tokens": float(self.rollout_tokens),
            "rollout/revision_tokens": float(self.revision_tokens),
        }


class WorkClock:
    """Adds up time by what is in flight. `now` returns seconds and never runs backwards."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._start = self._last = now()
        self._in_flight: dict[WorkKind, int] = {"generation": 0, "scoring": 0}
        self._busy_s: dict[WorkKind, float] = {"generation": 0.0, "scoring": 0.0}
        self._exposed_s = 0.0
        self._tokens = {"rollout": 0, "revision": 0}

    @contextmanager
    def working(self, work: WorkKind) -> Iterator[None]:
        """One call of this kind is in flight inside the block."""
        self._advance()
        self._in_flight[work] += 1
        try:
            yield
        finally:
            self._advance()
            self._in_flight[work] -= 1

    def add_tokens(self, kind: Literal["rollout", "revision"], tokens: int) -> None:
        """Count sampled tokens."""
        self._tokens[kind] += tokens

    def stats(self, groups: int) -> PipelineStats:
        """Totals since the clock was made."""
        self._advance()
        return PipelineStats(
            groups=groups,
            wall_s=self._last - self._start,
            generation_s=self._busy_s["generation"],
            scoring_s=self._busy_s["scoring"],
            scoring_exposed_s=self._exposed_s,
            rollout_tokens=self._tokens["rollout"],
            revision_tokens=self._tokens["revision"],
        )

    def _advance(self) -> None:
        now = self._now()
        passed, self._last = now - self._last, now
        if self._in_flight["generation"]:
            self._busy_s["generation"] += passed
        if self._in_flight["scoring"]:
            self._busy_s["scoring"] += passed
            if not self._in_flight["generation"]:
                self._exposed_s += passed
