"""`herl improve`: self-improvement at test time on held-out prompts, beside best-of-N.

For each prompt: sample, score, revise against the unmet criteria, keep the best, for
`improve.rounds` rounds. The run's folder gets every trajectory as it ends (`trajectories.jsonl`,
`best_of_n.jsonl`), the numbers (`improve.json`) and a table. Stopped, it goes on with
`run.resume=true`: trajectories that are complete and scored are not drawn again, and the judge's
cache knows the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import get_console
from rich.table import Table

from herl_megatron.commands.results import ImproveResult
from herl_megatron.config.paths import run_path
from herl_megatron.config.schema import Config
from herl_megatron.files.run_files import SAMPLES, TRAJECTORIES
from herl_megatron.hindsight.prompt_file import revision_form
from herl_megatron.hindsight.revision_prompts import check_prompts
from herl_megatron.improvement.sampling import Improver
from herl_megatron.improvement.trajectory import (
    Attempt,
    Outcome,
    RoundResult,
    round_results,
)
from herl_megatron.improvement.trajectory_log import (
    TrajectoryLog,
    check_continues,
)
from herl_megatron.rubrics.none_scored import require_any_score
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.inputs import Inputs, load_inputs
from herl_megatron.run.parts import EvalParts, open_eval_parts

logger = logging.getLogger(__name__)


async def improve(config: Config) -> ImproveResult:
    """Improve the answers of the Hugging Face folder `model.path` to the prompts of `data.eval`.

    Raises:
        ValueError: bad input; with `run.resume` also another configuration than the folder's.
        RuntimeError: an engine or the judge is gone for good, or nothing could be scored; what was
            complete is on disk.
    """
    inputs = load_inputs(config, training=False, revises=True)
    check_prompts(inputs.eval, revision_form(config.hindsight))
    if config.run.resume:
        check_continues(run_path(config), config, inputs.fingerprints)
    with (
        RunFolder.create(config, purpose="improve", fingerprints=inputs.fingerprints) as folder,
        TrajectoryLog(folder.path, inputs.eval) as log,
    ):
        try:
            async with open_eval_parts(config, inputs) as parts:
                folder.saw_nodes(parts.nodes)
                results = await _run(config, inputs, parts, log)
                restarts = parts.restarts.metrics()
        except BaseException:
            logger.error(
                "%d complete trajectories are in %s; run.resume=true goes on from there",
                len(log.trajectories), folder.path / TRAJECTORIES,
            )  # fmt: skip
            raise
        folder.take_back(keep=(TRAJECTORIES, SAMPLES))
        for result in results:
            folder.log(result.round, _metrics(result))
        folder.log(config.improve.rounds, restarts)
        folder.write_json("improve.json", summary(config, inputs, results))
        get_console().print(table(results))
        logger.info("trajectories and numbers: %s", folder.path)
    return ImproveResult(folder.path, tuple(results))


async def _run(
    config: Config, inputs: Inputs, parts: EvalParts, log: TrajectoryLog
) -> list[RoundResult]:
    improver = Improver(
        parts.engines,
        parts.scorer,
        inputs.tokenizer,
        config,
        on_trajectory=log.add_trajectory,
        on_sample=log.add_sample,
    )
    trajectories = await improver.improve(inputs.eval, dict(log.trajectories))
    require_any_score(attempt.score for one in trajectories for attempt in one.attempts)
    samples: Sequence[Sequence[Attempt]] | None = None
    if config.improve.best_of_n:
        known = {key: list(drawn) for key, drawn in log.samples.items()}
        samples = await improver.sample_baseline(inputs.eval, trajectories, known)
    return round_results(trajectories, samples, rounds=config.improve.rounds)


def summary(config: Config, inputs: Inputs, results: Sequence[RoundResult]) -> dict[str, Any]:
    """`improve.json`: prompts, trajectories of each, and every number of every round."""
    return {
        "model": config.model.path,
        "prompts": len(inputs.eval),
        "trajectories_per_prompt": config.eval.samples_per_prompt,
        "rounds": [asdict(result) for result in results],
    }


def table(results: Sequence[RoundResult]) -> Table:
    """Answers and their cost, round by round, and what best-of-N makes of the same cost."""
    shown = Table(title="self-improvement on held-out prompts", title_justify="left", box=None)
    for title in ("", "reward", "all satisfied", "accepted", "samples", "tokens"):
        shown.add_column(title, justify="right" if title else "left")
    for result in results:
        name = f"after round {result.round}" if result.round else "first samples"
        joined = f"{result.accepted}/{result.revisions + result.redrawn}" if result.round else ""
        shown.add_row(name, *_cells(result.outcome, joined))
    last = results[-1]
    for best, cost in ((last.same_samples, "samples"), (last.same_tokens, "tokens")):
        if best is not None:
            shown.add_row(f"best of {best.n}, equal {cost}", *_cells(best.outcome, ""))
    unscored = sum(result.unscored for result in results)
    if unscored:
        shown.caption = f"[yellow]{unscored} responses without a score[/]"
    return shown


def _cells(outcome: Outcome, accepted: str) -> tuple[str, ...]:
    means = (_number(outcome.reward), _number(outcome.all_satisfied))
    return (*means, accepted, f"{outcome.samples:,}", f"{outcome.tokens:,}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _metrics(result: RoundResult) -> dict[str, float]:
    """One round's numbers by metric name; a mean over nothing is left out."""
    arms = {"improve": result.outcome}
    if result.same_samples is not None and result.same_tokens is not None:
        arms["best_of_n"] = result.same_samples.outcome
        arms["best_of_n_tokens"] = result.same_tokens.outcome
    values = {
        f"{arm}/{name}": float(value)
        for arm, outcome in arms.items()
        for name, value in asdict(outcome).items()
        if value is not None
    }
    counts = ("revisions", "redrawn", "accepted", "unscored")
    return values | {f"improve/{name}": float(asdict(result)[name]) for name in counts}
