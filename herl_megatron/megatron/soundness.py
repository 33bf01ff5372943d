"""Weights that are no model's: NaN, infinity, or a size that only a step gone wrong leaves behind.

After every optimizer step all parameters are read once (`largest_weight`): what is sent to the
engines, saved and exported is what was looked at. On the device that is one reduction per parameter
and one number that the host waits for; the names are found only when the run ends because of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

LARGEST_SANE = 1e6
"""No model computes with a weight beyond this: float16, in which models are exchanged, ends at
65504, and behind one such product the residual stream holds nothing else."""


@dataclass(frozen=True)
class WeightReport:
    """What one rank, or all of them together, hold.

    names: every parameter looked at, by its name in the whole model; bad: those that hold NaN or
        infinity, in the model's order; largest: the largest magnitude, infinite where any is bad.
    """

    names: tuple[str, ...]
    bad: tuple[str, ...]
    largest: float

    @property
    def problem(self) -> str:
        """Why these weights are no model's, or the empty string."""
        if self.bad:
            return (
                f"{len(self.bad)} of {len(self.names)} parameters hold NaN or infinity, first"
                f" {self.bad[0]}"
            )
        if self.largest > LARGEST_SANE:
            return (
                f"the largest weight is {self.largest:.2g}; beyond {LARGEST_SANE:.0e} no model"
                " computes anything"
            )
        return ""


@torch.no_grad()
def largest_weight(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """The largest magnitude as a float32 scalar on their device, infinity where one is not finite;
    nothing waits for the device."""
    # Of the ways to look at every value this one is by far the cheapest on a CPU, and needs no
    # copy; both ends are NaN where any value is.
    ends: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.numel():
            ends.setdefault(parameter.dtype, []).extend(torch.aminmax(parameter))
    if not ends:
        return torch.zeros(())
    largest = torch.stack([torch.stack(own).float().abs().amax() for own in ends.values()]).amax()
    return largest.nan_to_num(nan=math.inf, posinf=math.inf)


def weight_report(parameters: Mapping[str, torch.Tensor]) -> WeightReport:
    """Look at one rank's parameters, by global name."""
    sizes = {name: float(largest_weight([values])) for name, values in parameters.items()}
    return WeightReport(
        names=tuple(sizes),
        bad=tuple(name for name, size in sizes.items() if not math.isfinite(size)),
        largest=max(sizes.values(), default=0.0),
    )


def merge_reports(reports: Sequence[WeightReport]) -> WeightReport:
    """Of all ranks: a parameter that several of them hold, whole or in part, counts once."""
    return WeightReport(
        names=tuple(dict.fromkeys(name for report in reports for name in report.names)),
        bad=tuple(dict.fromkeys(name for report in reports for name in report.bad)),
        largest=max(report.largest for report in reports),
    )
