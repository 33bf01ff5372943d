"""A run's progress as lines of text: one per step, one per evaluation."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from herl_megatron.observability.durations import duration

LINE_EVERY_S = 10.0
"""Steps that are shorter share a line; the last step always has its own."""
_PACE_OVER_STEPS = 20
"""The time left is reckoned from so many last steps: the first ones wait for caches to fill."""
_NEGLIGIBLE = 0.02
"""A phase of a smaller share of the step is left out of the line."""


@dataclass(frozen=True)
class _Shown:
    title: str
    names: Sequence[str]
    """Metrics, of which the first that is there counts."""
    digits: str


_SHOWN = (
    _Shown("reward", ("reward/mean",), ".3f"),
    _Shown("all satisfied", ("reward/all_satisfied",), ".3f"),
    _Shown("loss", ("train/loss", "sft/loss", "dpo/loss"), ".4g"),
    _Shown("accuracy", ("dpo/accuracy",), ".3f"),
    _Shown("KL", ("train/kl", "train/kl_old_new"), ".2g"),
    _Shown("grad norm", ("train/grad_norm", "sft/grad_norm", "dpo/grad_norm"), ".3g"),
    _Shown("length", ("rollout/response_tokens",), ".0f"),
    _Shown("tokens/s", ("perf/tokens_per_s",), ",.0f"),
)
_EVALUATED = (
    _Shown("reward", ("eval/reward",), ".3f"),
    _Shown("all satisfied", ("eval/all_satisfied",), ".3f"),
    _Shown("length", ("eval/response_tokens",), ".0f"),
    _Shown("unscored", ("eval/unscored",), ".0f"),
)


class StepLines:
    """Says how a loop gets on.

    label: of the loop; steps: all that it will take, in order; every_s: least time between two
    lines; now: seconds, never backwards.
    """

    def __init__(
        self,
        label: str,
        steps: range,
        *,
        every_s: float = LINE_EVERY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._steps = steps
        self._every_s = every_s
        self._now = now
        self._ends: deque[float] = deque([now()], maxlen=_PACE_OVER_STEPS + 1)
        self._said: float | None = None
        self.latest = ""
        """The line of the newest step, said or not."""

    def step(self, step: int, values: Mapping[str, float]) -> str | None:
        """The step is over. Returns its line, or None if the last one was said a moment ago."""
        now = self._now()
        seconds = values.get("time/total_s", now - self._ends[-1])
        self._ends.append(now)
        done = self._steps.index(step) + 1
        left = len(self._steps) - done
        # A resumed loop counts from the beginning of the run.
        before = math.ceil(self._steps.start / self._steps.step)
        parts = [f"{self._label} {before + done}/{before + len(self._steps)}"]
        parts += _numbers(_SHOWN, values)
        parts.append(duration(seconds) + _phases(values))
        if left:
            parts.append(f"ETA {duration(left * self._pace_s())}")
        self.latest = "  ".join(parts)
        if left and self._said is not None and now - self._said < self._every_s:
            return None
        self._said = now
        return self.latest

    def _pace_s(self) -> float:
        """Seconds per step lately, with all that came between two steps."""
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)


def evaluation_line(step: int, values: Mapping[str, float]) -> str:
    """Held-out numbers after `step` steps."""
    return "  ".join([f"evaluation after {step} steps", *_numbers(_EVALUATED, values)])


def _numbers(shown: Sequence[_Shown], values: Mapping[str, float]) -> list[str]:
    """`title number` of each that is there."""
    found = []
    for item in shown:
        value = next((values[name] for name in item.names if name in values), None)
        if value is not None:
            found.append(f"{item.title} {value:{item.digits}}")
    return found


def _phases(values: Mapping[str, float]) -> str:
    """Where the step's time went, the longest first: ` (rollout 41.2, train 25.1)`."""
    total = values.get("time/total_s")
    if not total:
        return ""
    # Of a step's split; `pipeline`, `generation` and `scoring` are looks into its rollout.
    inside = {"total", "pipeline", "generation", "scoring", "scoring_exposed"}
    split = {
        name.removeprefix("time/").removesuffix("_s"): value
        for name, value in values.items()
        if name.startswith("time/")
    }
    shown = sorted(
        ((value, name) for name, value in split.items() if name not in inside), reverse=True
    )
    texts = [f"{name} {value:.1f}" for value, name in shown if value >= _NEGLIGIBLE * total]
    return f" ({', '.join(texts)})" if texts else ""
