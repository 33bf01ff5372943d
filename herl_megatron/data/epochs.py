"""Epochs to steps: `train.epochs`, `sft.epochs` and `dpo.epochs`, from the rows that are there.

Done once, when a configuration is prepared: schedule, progress, plan, resume and the run's
config.yaml all have that one number.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config
from herl_megatron.config.schema.base import MOST_STEPS
from herl_megatron.data.row_files import rows_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epochs:
    """What a command goes through: `epochs` times the rows of the file `path`, `per_step` in each
    step. key, size: of the configuration, for messages."""

    purpose: Purpose
    epochs: float
    path: str
    key: str
    size: str
    per_step: int

    def steps(self, rows: int) -> int:
        """epochs * rows / per_step, rounded up; epochs as the decimal number that was written.

        Raises:
            ValueError: more steps than a run can have.
        """
        steps = math.ceil(Fraction(repr(self.epochs)) * rows / self.per_step)
        if steps > MOST_STEPS:
            raise ValueError(
                f"{self.purpose}.epochs is {self.epochs:g}, which of {rows} rows makes {steps}"
                f" steps; the most are {MOST_STEPS}"
            )
        return steps

    def said(self, rows: int) -> str:
        """The number and what it is made of."""
        return (
            f"{self.purpose}.steps is {self.steps(rows)}: {self.purpose}.epochs {self.epochs:g} of"
            f" the {rows:,} rows of {self.path}, {self.per_step} in a step ({self.size})"
        )


def epochs_of(config: Config, purpose: Purpose) -> Epochs | None:
    """None where the command takes a number of steps, or has none; both are a rule's to refuse."""
    train, sft, dpo = config.train, config.sft, config.dpo
    if purpose == "train" and train.epochs is not None and train.steps is None:
        per_step = train.prompts_per_step
        return Epochs(purpose, train.epochs, config.data.train, "data.train",
                      "train.prompts_per_step", per_step)  # fmt: skip
    if purpose == "sft" and sft.epochs is not None and sft.steps is None:
        return Epochs(purpose, sft.epochs, sft.data, "sft.data",
                      "sft.rows_per_step", sft.rows_per_step)  # fmt: skip
    if purpose == "dpo" and dpo.epochs is not None and dpo.steps is None:
        return Epochs(purpose, dpo.epochs, dpo.data, "dpo.data",
                      "dpo.pairs_per_step", dpo.pairs_per_step)  # fmt: skip
    return None


def in_steps(config: Config, purpose: Purpose) -> Config:
    """The configuration with steps in the place of the command's epochs; as it is without epochs.

    Raises:
        ValueError: the file of rows is not there, cannot be read or is empty (file and line).
    """
    asked = epochs_of(config, purpose)
    if asked is None:
        return config
    known, said = _counted(config, asked)
    logger.info("%s", said)
    return known


def in_steps_where_known(config: Config, purpose: Purpose) -> tuple[Config, str]:
    """As `in_steps`, and what to tell of it; as it is where the file of rows is not here."""
    asked = epochs_of(config, purpose)
    if asked is None:
        return config, ""
    if not Path(asked.path).is_file():
        return config, (
            f"{purpose}.epochs is {asked.epochs:g} and {asked.key} {asked.path!r} is not here, so"
            " the number of steps is not known, nor what a whole run takes"
        )
    return _counted(config, asked)


def _counted(config: Config, asked: Epochs) -> tuple[Config, str]:
    rows = count_rows(asked.path)
    section = {"train": config.train, "sft": config.sft, "dpo": config.dpo}[asked.purpose]
    known = section.in_steps(asked.steps(rows))
    return config.model_copy(update={asked.purpose: known}), asked.said(rows)


def count_rows(path: str) -> int:
    """Rows of a JSONL or Parquet file; ValueError as `row_files.rows_of`, or if it has none."""
    rows = sum(1 for _ in rows_of(path))
    if not rows:
        raise ValueError(f"{path}: the file has no rows")
    return rows
