"""What a benchmark says of a model: named numbers, how sure the first of them is, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from herl_megatron.benchmarks.answered import mean
from herl_megatron.types import Prompt

RESAMPLES = 1000
"""Of the prompts, drawn with replacement, behind an interval."""
_SEED = 0


@dataclass(frozen=True)
class Part:
    """A number of some of the prompts (a domain, a difficulty) and how many values it averages."""

    value: float
    n: int


@dataclass(frozen=True)
class Measured:
    """What a benchmark's function returns.

    headline: the name of the metric that tables show. per_prompt: its value of each prompt that
        has one. metrics: all of them, by name, as fractions of 1. parts: by kind, then by name.
    clipped: whether the headline is the mean clipped to [0, 1].
    """

    headline: str
    per_prompt: Sequence[float]
    metrics: Mapping[str, float]
    parts: Mapping[str, Mapping[str, Part]] = field(default_factory=dict)
    clipped: bool = False


@dataclass(frozen=True)
class BenchmarkNumbers:
    """One benchmark's numbers of one model.

    headline: the metric that tables show. prompts, responses: as many as were evaluated, unscored
        ones included; several responses to a prompt are averaged first. unscored: responses without
        a score, which are in no number. metrics: as fractions of 1 (WritingBench's 57.0 is 0.57);
        empty where nothing could be computed. interval: 95 % bootstrap interval over prompts, of
        the headline. parts: by kind (`domain1`), then by name. notes: what keeps the numbers from
        comparing with published ones.
    """

    headline: str
    prompts: int
    responses: int
    unscored: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Part]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values, as result files have them."""
        return asdict(self)


def bootstrap_interval(values: Sequence[float], *, clipped: bool = False) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean of `values`, drawn anew `RESAMPLES` times with
    replacement and a fixed seed; of the mean clipped to [0, 1] where `clipped`.

    It says how much the choice of prompts matters, not that of samples or of the judge.
    """
    generator = np.random.Generator(np.random.PCG64(_SEED))
    numbers = np.asarray(values, dtype=np.float64)
    means = np.array(
        [numbers[generator.integers(len(numbers), size=len(numbers))].mean()
         for _ in range(RESAMPLES)]
    )  # fmt: skip
    low, high = np.percentile(np.clip(means, 0, 1) if clipped else means, [2.5, 97.5])
    return float(low), float(high)


def clip(value: float) -> float:
    """Into [0, 1]."""
    return min(1.0, max(0.0, value))


def grouped(
    values: Iterable[tuple[Prompt, float]],
    names: Callable[[Prompt], Iterable[str]],
    *,
    clipped: bool = False,
) -> dict[str, Part]:
    """The mean of the prompts' values under each of their names, in order of the names."""
    found: dict[str, list[float]] = {}
    for prompt, value in values:
        for name in names(prompt):
            found.setdefault(name, []).append(value)
    return parts_of(found, clipped=clipped)


def parts_of(found: Mapping[str, Sequence[float]], *, clipped: bool = False) -> dict[str, Part]:
    """The mean of the values under each name, in order of the names."""
    means = {name: mean(values) for name, values in sorted(found.items())}
    return {
        name: Part(clip(value) if clipped else value, len(found[name]))
        for name, value in means.items()
    }


def noted(prompt: Prompt, *keys: str) -> list[str]:
    """What `extra` of a row has under the first of these keys that it has; none or one."""
    for key in keys:
        value = prompt.extra.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return [str(value)]
    return []
