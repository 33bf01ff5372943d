"""How far apart two computations of the same log-probs may be.

Two correct programs do not agree: in bf16 a real model of 30 layers differs by 0.05 from its own
fp32 values, on either side, and a small one by a tenth of that. So a limit is `parity.noise_factor`
times what rounding does to this very model, measured at the start (`weight_sync.parity`). Two
bounds hold whatever was measured: a limit never falls below `FLOORS` (or `SAME_PROGRAM` of it,
where an engine is compared with an engine), because a policy may come to round more as it learns,
and never rises above the caps of the configuration, so that an engine
which is wrong from the start is no measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from herl_megatron.config.schema import ParityConfig, Precision
from herl_megatron.types import FloatArray

Coarsest = Literal["fp32", "bf16", "fp8"]


@dataclass(frozen=True)
class ParityLimits:
    """Largest allowed mean and max of |engine's - trainer's| log-prob."""

    mean: float
    max: float

    def __str__(self) -> str:
        return f"mean {self.mean:.3g}, max {self.max:.3g}"


FLOORS: Mapping[Coarsest, ParityLimits] = {
    "fp32": ParityLimits(mean=1e-5, max=1e-3),
    "bf16": ParityLimits(mean=0.03, max=1.0),
    "fp8": ParityLimits(mean=0.2, max=2.0),
}
"""Along the quickstart's 30 steps in bf16 the mean over the prompts' tokens went from 0.016 to at
most 0.023, that over sampled ones from 0.004 to 0.017, and single tokens came to 0.74, seven times
the first largest one: the mean is what tells, the largest difference only an outright fault."""

SAME_PROGRAM = 0.25
"""Share of the floors where a program is compared with itself: only what else is in the batch
differs. On the CPU that changes no bit. GPU kernels that are not batch invariant add in another
order then, which is rounding too, though less than that of two programs which round in different
places; a model that rounds more than this share shows it in the noise at the start, and has
`parity.noise_factor` times that as its limit."""


@dataclass(frozen=True)
class Difference:
    """|engine's - trainer's| log-prob over `tokens` tokens; NaN where one of them is NaN."""

    mean: float
    max: float
    tokens: int

    def share_of(self, limits: ParityLimits) -> float:
        """The larger of both numbers' shares of their limits; above 1 is too far, NaN stays NaN."""
        return float(np.max([self.mean / limits.mean, self.max / limits.max]))

    def within(self, limits: ParityLimits) -> bool:
        """False for NaN."""
        return self.share_of(limits) <= 1

    def __str__(self) -> str:
        return f"mean {self.mean:.2e}, max {self.max:.2e} over {self.tokens} tokens"


@dataclass(frozen=True)
class Tolerance:
    """The bounds of a run's limits and their distance from the noise."""

    caps: ParityLimits
    floors: ParityLimits
    factor: float

    def limits(self, noise: Difference, *, same_program: bool = False) -> ParityLimits:
        """What is allowed where rounding alone makes `noise`, between engines if `same_program`."""
        share = SAME_PROGRAM if same_program else 1.0
        return ParityLimits(
            mean=min(self.caps.mean, max(share * self.floors.mean, self.factor * noise.mean)),
            max=min(self.caps.max, max(share * self.floors.max, self.factor * noise.max)),
        )


def tolerance_for(config: ParityConfig, *precisions: Precision, fp8: bool = False) -> Tolerance:
    """Bounds of the coarsest of the precisions that meet: the trainer's and the engines'.

    fp8: whether one of them computes its matrix products in FP8.
    """
    caps: dict[Coarsest, ParityLimits] = {
        "fp32": ParityLimits(mean=config.fp32_mean, max=config.fp32_max),
        "bf16": ParityLimits(mean=config.bf16_mean, max=config.bf16_max),
        "fp8": ParityLimits(mean=config.fp8_mean, max=config.fp8_max),
    }
    coarsest: Coarsest = "fp8" if fp8 else "bf16" if "bf16" in precisions else "fp32"
    return Tolerance(caps[coarsest], FLOORS[coarsest], config.noise_factor)


def compare(engine: Sequence[FloatArray], trainer: Sequence[FloatArray]) -> Difference:
    """Difference over all tokens of all sequences."""
    for left, right in zip(engine, trainer, strict=True):
        assert left.shape == right.shape, f"log-probs of {left.shape} and {right.shape} tokens"
    with np.errstate(invalid="ignore"):  # of two infinities the difference is NaN, as it should be
        apart = np.abs(np.concatenate(engine).astype(np.float64) - np.concatenate(trainer))
    return Difference(mean=float(apart.mean()), max=float(apart.max()), tokens=len(apart))


def largest(differences: Sequence[Difference]) -> Difference:
    """The largest mean, the largest max and all tokens; NaN where there is one."""
    return Difference(  # np.max, unlike max, keeps a NaN
        mean=float(np.max([one.mean for one in differences])),
        max=float(np.max([one.max for one in differences])),
        tokens=sum(one.tokens for one in differences),
    )
