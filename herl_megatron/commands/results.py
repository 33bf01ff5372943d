"""What the commands return to who calls them from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herl_megatron.commands.evaluate import EvalResult
    from herl_megatron.improve.trajectory import RoundResult
    from herl_megatron.observability.summary import Evaluated


@dataclass(frozen=True)
class TrainResult:
    """A finished `herl train`.

    folder: the run's, with metrics.jsonl, summary.json and config.yaml.
    policy: Hugging Face folder of the trained model; None with `train.export` false.
    before, after: held-out numbers of the first and the last weights; None without `data.eval`.
    """

    folder: Path
    policy: Path | None
    before: Evaluated | None
    after: Evaluated | None


@dataclass(frozen=True)
class TuneResult:
    """A finished `herl sft` or `herl dpo`: the run's folder and the Hugging Face folder in it.

    first, last: the numbers of the first and the last step, by name; empty for a run of no steps.
    """

    folder: Path
    policy: Path
    first: dict[str, float]
    last: dict[str, float]


@dataclass(frozen=True)
class EvaluateResult:
    """A finished `herl eval`: the run's folder and the numbers."""

    folder: Path
    result: EvalResult


@dataclass(frozen=True)
class ImproveResult:
    """A finished `herl improve`: the run's folder and the numbers of each round, first samples
    first."""

    folder: Path
    rounds: tuple[RoundResult, ...]


@dataclass(frozen=True)
class ScoreResult:
    """A finished `herl score`.

    verdicts: one line per row. summary: file of the totals. totals: what it holds.
    """

    verdicts: Path
    summary: Path
    totals: dict[str, Any]
