"""What every section of the configuration is, and what its keys say about themselves."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

Precision = Literal["fp32", "bf16"]
T = TypeVar("T")


class Decides(StrEnum):
    """What a key decides. Every key has one of these in its type, as in `seed: Numbers[int]`; what
    a resumed run must share with its beginning is derived from that (`config.decides`)."""

    NUMBERS = "numbers"
    """What is sampled, trained or reported: the same run has the same value from start to end."""
    VERDICTS = "verdicts"
    """How a response is scored; a run that goes on under another value mixes two rewards."""
    EVALUATION = "evaluation"
    """What the held-out numbers mean; those from before a change do not compare with later ones."""
    SPEED = "speed"
    """Time, memory, placement and patience; results agree (across layouts: within rounding)."""
    NOTHING = "nothing"
    """No result: names, files, prices, and how often something is looked at or kept."""


Numbers = Annotated[T, Decides.NUMBERS]
Verdicts = Annotated[T, Decides.VERDICTS]
Evaluation = Annotated[T, Decides.EVALUATION]
Speed = Annotated[T, Decides.SPEED]
Nothing = Annotated[T, Decides.NOTHING]

BY_CONTENT = "by content"
"""Marks a path that may change: what the file holds decides (`data.fingerprints`)."""


LEAST_TEMPERATURE = 0.01
"""Logits are divided by it: below, differences of rounding decide, and soon they overflow. 0 is
greedy."""
MOST_TEMPERATURE = 100.0
LONGEST_S = 1e8
"""Three years. A timer of far more seconds is an OverflowError where it is set."""
SHORTEST_S = 1e-3
"""What is waited for less long has never time to happen."""
LEAST_PER_MINUTE = 0.01
"""One in 100 minutes; the wait for one of far fewer is an OverflowError where it is slept."""
LEAST, MOST = 1e-15, 1e38
"""Of any number that is not whole: below, fp32 arithmetic rounds it away; above, fp32 has none.
What is too large all the same, such as a learning rate of 1e30, a run finds out (`soundness`)."""
MOST_WHOLE = 1 << 53
"""Of any whole number, bytes and seeds too: above, JSON and floats no longer tell neighbours
apart."""

# Where a larger count can mean nothing but a slip, each is refused before anything allocates it.
MOST_PROCESSES = 4096
MOST_AT_ONCE = 1 << 16
"""Of one thing held side by side: requests, sequences, members of a group, layers."""
MOST_ROWS = 1_000_000
MOST_STEPS = 1_000_000_000
MOST_TOKENS = (1 << 31) - 1
"""Engines count tokens in 32 bits."""


class Section(BaseModel):
    """Base of every section: unknown keys refused, values frozen, docstrings kept as help.

    No number is NaN or infinite: each is a size, a share or a limit that a run computes with.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _of_a_size_that_means_something(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if isinstance(value, int) and abs(value) > MOST_WHOLE:
            raise ValueError(f"whole numbers are at most 2^53 ({MOST_WHOLE}) in size")
        if isinstance(value, float):
            _check_float(name, value)
        return value


def _check_float(name: str, value: float) -> None:
    """Raises:
    ValueError: too small or too large to mean anything, by what the key's name says it is.
    """
    if name == "temperature":
        if value and not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE:
            raise ValueError(
                f"a temperature is 0 (greedy) or from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"
            )
    elif name.endswith("_s"):
        if value > LONGEST_S:
            raise ValueError(f"seconds are at most {LONGEST_S:g}")
        if value < SHORTEST_S:
            raise ValueError(f"seconds are at least {SHORTEST_S:g}")
    elif name.endswith("_per_minute") and 0 < value < LEAST_PER_MINUTE:
        raise ValueError(f"a rate is 0 (no limit) or at least {LEAST_PER_MINUTE:g} per minute")
    elif value and not LEAST <= abs(value) <= MOST:
        raise ValueError(f"a number is 0 or from {LEAST:g} to {MOST:g} in size")
