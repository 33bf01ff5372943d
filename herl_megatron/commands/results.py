"""What the commands return to who calls them from Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herl_megatron.benchmarks.known_benchmarks import headlines
from herl_megatron.benchmarks.measured import BenchmarkNumbers

if TYPE_CHECKING:
    from herl_megatron.improvement.trajectory import RoundResult
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

    first, last: the numbers of the first and the last step, by name.
    before, after: held-out numbers of the first and the last weights; None without `eval_every`,
        and before where the run was not evaluated from its beginning.
    """

    folder: Path
    policy: Path
    first: dict[str, float]
    last: dict[str, float]
    before: Evaluated | None = None
    after: Evaluated | None = None


@dataclass(frozen=True)
class EvalResult:
    """Means over the scored responses of the held-out prompts.

    reward: mean reward in the rubrics' scale.
    all_satisfied: share of scored responses that meet every verifiable criterion.
    response_tokens: mean length in tokens, unscored responses included.
    per_check: share of responses that satisfy a check, by check name; statements under `judge`.
    per_source: mean reward by the prompts' source, where they name one.
    credit: mean credit by check, of the checks that return numbers.
    benchmarks: each benchmark's own metrics, of the prompts that are of one.
    """

    reward: float
    all_satisfied: float
    responses: int
    unscored: int
    response_tokens: float
    per_check: dict[str, float]
    per_source: dict[str, float]
    credit: dict[str, float] = field(default_factory=dict)
    benchmarks: dict[str, BenchmarkNumbers] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as the result file has them."""
        shown = {name: one.as_json() for name, one in self.benchmarks.items()}
        return vars(self) | {"benchmarks": shown}

    def metrics(self) -> dict[str, float]:
        """The numbers by metric name; of benchmarks the headlines alone."""
        flat = {
            "eval/reward": self.reward,
            "eval/all_satisfied": self.all_satisfied,
            "eval/unscored": float(self.unscored),
            "eval/response_tokens": self.response_tokens,
        }
        checks = {f"eval/check/{name}": value for name, value in self.per_check.items()}
        sources = {f"eval/source/{name}": value for name, value in self.per_source.items()}
        credit = {f"eval/credit/{name}": value for name, value in self.credit.items()}
        return flat | checks | sources | credit | headlines(self.benchmarks)


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
