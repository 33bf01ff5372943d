"""Held-out numbers of one run that do not compare with each other."""

from __future__ import annotations

from collections.abc import Sequence

from herl_megatron.types import StepMetrics

EVALUATION_CHANGED = "eval/changed"
"""1 in the line of metrics from which on held-out numbers are of another evaluation than before."""


def comparable(history: Sequence[StepMetrics]) -> list[StepMetrics]:
    """The history without the held-out numbers of an evaluation that was changed since: they do not
    compare with those that came after (`EVALUATION_CHANGED`)."""
    changes = [number for number, item in enumerate(history) if EVALUATION_CHANGED in item.values]
    first = changes[-1] if changes else 0
    return [
        StepMetrics(item.step, {n: v for n, v in item.values.items() if not n.startswith("eval/")})
        if number < first
        else item
        for number, item in enumerate(history)
    ]
