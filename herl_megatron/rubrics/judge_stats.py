"""What the judge was asked, what it cost and how long it took."""

from __future__ import annotations

from collections import Counter

import numpy as np

FAILURES = (
    "transport", "timeout", "rate_limit", "server", "invalid", "canary", "evidence", "refused"
)  # fmt: skip
"""Kinds of calls that gave no verdict, each counted as `failures_KIND`."""
_COUNTS = (
    "calls", "retries", "cache_hits", "shared", "judged", "unjudged", "unquoted",
    "addressed", "tokens_in", "tokens_out", *(f"failures_{kind}" for kind in FAILURES),
)  # fmt: skip


class JudgeStats:
    """Counts since the start, and what is new since the last `metrics`.

    calls: requests sent, retries and re-asks included. retries: those after the first of a unit.
    cache_hits: judgements found in the cache. shared: judgements that an equal one in flight gave.
    judged, unjudged: units (a request's worth of criteria) with and without a verdict in the end.
    failures_canary: answers voided by a canary. unquoted: statements called true without a quote.
    addressed: responses that seem to speak to the judge.
    """

    def __init__(self, *, price_in: float, price_out: float) -> None:
        self._prices = price_in, price_out
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._latencies_s: list[float] = []
        self._paused_reported_s = 0.0
        self._pauses_reported = 0

    def add(self, name: str, count: int = 1) -> None:
        """Count something of `_COUNTS`."""
        assert name in _COUNTS, f"{name} is not counted"
        self._counts[name] += count

    def spend(self, tokens: tuple[int, int]) -> None:
        """Tokens in and out of one call."""
        self.add("tokens_in", tokens[0])
        self.add("tokens_out", tokens[1])

    def took(self, seconds: float) -> None:
        """The time of one answered call."""
        self._latencies_s.append(seconds)

    def totals(self) -> dict[str, float]:
        """All counts and the cost since the start."""
        return {name: float(self._counts[name]) for name in _COUNTS} | {
            "cost": self._cost(self._counts)
        }

    def metrics(self, *, paused_s: float, pauses: int) -> dict[str, float]:
        """`judge/...` since the last call; `paused_s` and `pauses` are totals so far.

        Latencies are of answered calls and there only where there was one.
        """
        new = {name: self._counts[name] - self._reported[name] for name in _COUNTS}
        self._reported = Counter(self._counts)
        values = {f"judge/{name}": float(count) for name, count in new.items()}
        values["judge/cost"] = self._cost(new)
        values["judge/paused_s"] = paused_s - self._paused_reported_s
        values["judge/pauses"] = float(pauses - self._pauses_reported)
        self._paused_reported_s, self._pauses_reported = paused_s, pauses
        if self._latencies_s:
            p50, p95 = np.percentile(self._latencies_s, [50, 95])
            values |= {"judge/latency_p50_s": float(p50), "judge/latency_p95_s": float(p95)}
            self._latencies_s = []
        return values

    def _cost(self, counts: Counter[str] | dict[str, int]) -> float:
        price_in, price_out = self._prices
        return (counts["tokens_in"] * price_in + counts["tokens_out"] * price_out) / 1e6
