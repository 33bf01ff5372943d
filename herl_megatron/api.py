"""What `herl COMMAND` runs, as plain functions for scripts and notebooks: `from herl_megatron
import prepare, train`.

Each takes what `prepare` returned for its command, blocks until it is done and returns a result;
the command line goes through the same functions. Nothing is started for a configuration that is
refused. Errors: ValueError for what one can mend, RuntimeError or TimeoutError for a worker that
failed, KeyboardInterrupt after Ctrl-C, when all workers were ended.

What a function needs is imported by it alone: `score` runs without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from herl_megatron.blocking import run_blocking
from herl_megatron.prepared import PreparedConfig, prepare, require_prepared

if TYPE_CHECKING:
    from herl_megatron.commands.results import (
        EvaluateResult,
        ImproveResult,
        ScoreResult,
        TrainResult,
        TuneResult,
    )

__all__ = [
    "PreparedConfig",
    "dpo",
    "evaluate",
    "improve",
    "prepare",
    "score",
    "sft",
    "train",
]
T = TypeVar("T")


def train(config: PreparedConfig) -> TrainResult:
    """`herl train`: train with HeRL (or plain RLVR) and export the policy.

    Raises also `errors.SavedForResume` (a RuntimeError) after SIGUSR1, which only a
    script hears: where an event loop runs, it ends the process.
    """
    require_prepared(config, "train")
    if config.train.only:
        from herl_megatron.commands.halves import half

        return _run(config, half)
    from herl_megatron.commands.train import train as job

    return _run(config, job)


def sft(config: PreparedConfig) -> TuneResult:
    """`herl sft`: fine-tune on demonstrations and export the policy. Raises as `train`."""
    require_prepared(config, "sft")
    from herl_megatron.commands.sft import sft as job

    return _run(config, job)


def dpo(config: PreparedConfig) -> TuneResult:
    """`herl dpo`: learn from preference pairs and export the policy. Raises as `train`."""
    require_prepared(config, "dpo")
    from herl_megatron.commands.dpo import dpo as job

    return _run(config, job)


def evaluate(config: PreparedConfig) -> EvaluateResult:
    """`herl eval`: sample and score the held-out prompts with the model `model.path`."""
    require_prepared(config, "eval")
    from herl_megatron.commands.evaluate import run_evaluation as job

    return _run(config, job)


def improve(config: PreparedConfig) -> ImproveResult:
    """`herl improve`: revise held-out answers against the criteria they miss."""
    require_prepared(config, "improve")
    from herl_megatron.commands.improve import improve as job

    return _run(config, job)


def score(
    config: PreparedConfig,
    rows: str | Path,
    out: str | Path,
    *,
    mode: Literal["strict", "loose"] = "strict",
) -> ScoreResult:
    """`herl score`: score responses that are already there, by the sections `scoring` and `judge`.

    rows: JSONL or Parquet with rubric and response(s). out: verdicts, one line per row; called
    again it goes on where it was stopped. `scoring.workers` left out: as many as the rows and this
    machine's cores ask for.
    """
    require_prepared(config, "score")
    if mode not in ("strict", "loose"):
        raise ValueError(f"mode is {mode!r}; it is 'strict' or 'loose'")
    from herl_megatron.commands.score.job import ScoreJob, run_score

    job = ScoreJob(Path(rows), Path(out), mode, config.scoring, config.judge)
    return run_blocking(lambda: run_score(job))


def _run(config: PreparedConfig, job: Callable[[PreparedConfig], Coroutine[Any, Any, T]]) -> T:
    from herl_megatron.cluster.session import check_address  # imports Ray

    check_address(config.cluster)
    return run_blocking(lambda: job(config))
