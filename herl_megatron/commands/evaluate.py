"""Held-out evaluation: the training path's rollouts and scoring, without hindsight or training."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from rich import get_console

from herl_megatron.benchmarks.answered import Answered, answered_groups
from herl_megatron.benchmarks.known_benchmarks import benchmark_of, shortcomings
from herl_megatron.benchmarks.known_benchmarks import summarize as summarize_benchmarks
from herl_megatron.commands.benchmark_tables import benchmark_tables
from herl_megatron.commands.loose import loose_verdicts
from herl_megatron.commands.results import EvalResult, EvaluateResult
from herl_megatron.commands.tables import evaluation_tables
from herl_megatron.config.schema import Config
from herl_megatron.data.fingerprints import of_rows
from herl_megatron.files.run_files import EVALUATED
from herl_megatron.rollout.liveness import dead_message, is_dead, responses_by_prompt
from herl_megatron.rollout.pipeline import PipelineError
from herl_megatron.rubrics.breakdown import (
    credit_by_check,
    reward_by_source,
    satisfied_by_check,
)
from herl_megatron.rubrics.none_scored import require_any_score
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.inputs import load_inputs
from herl_megatron.run.parts import EvalParts, open_eval_parts
from herl_megatron.types import Prompt, Scored, ScoredGroup

logger = logging.getLogger(__name__)


def summarize(groups: Sequence[ScoredGroup]) -> EvalResult:
    """Average scored groups. Responses without a score are counted, not averaged.

    Raises:
        RuntimeError: no response could be scored; names the most frequent reasons.
    """
    scores = [score for group in groups for score in group.scores]
    scored = [score for score in scores if isinstance(score, Scored)]
    require_any_score(scores, of="evaluation")
    drawn = [r.completion.drawn_token_ids for group in groups for r in group.group.rollouts]
    return EvalResult(
        reward=sum(score.reward for score in scored) / len(scored),
        all_satisfied=sum(bool(score.satisfied) and not score.unmet for score in scored)
        / len(scored),
        responses=len(scores),
        unscored=len(scores) - len(scored),
        response_tokens=sum(map(len, drawn)) / len(drawn),
        per_check=satisfied_by_check(groups),
        per_source=reward_by_source(groups),
        credit=credit_by_check(groups),
        benchmarks=summarize_benchmarks(answered_groups(groups)),
    )


async def evaluate(
    parts: EvalParts, prompts: Sequence[Prompt]
) -> tuple[EvalResult, list[ScoredGroup]]:
    """Sample and score the held-out prompts with the weights that the engines hold now.

    The seeds are the same in every evaluation, so before and after differ by the weights alone.
    """
    groups = await parts.eval_pipeline.run(prompts, step=0)
    if is_dead(responses := responses_by_prompt(groups)):
        logger.warning("evaluation: %s", dead_message(responses))
    return summarize(groups), groups


async def _with_loose(
    result: EvalResult, groups: Sequence[ScoredGroup], parts: EvalParts
) -> EvalResult:
    """With the benchmarks' loose accuracies, for which responses are judged once more."""
    texts = [[rollout.text for rollout in group.group.rollouts] for group in groups]
    scored = answered_groups(groups)
    loose = await asyncio.gather(
        *(
            loose_verdicts(parts.scorer, one.prompt, drawn, one.scores)
            for one, drawn in zip(scored, texts, strict=True)
        )
    )
    answered = [
        Answered(one.prompt, one.scores, found) for one, found in zip(scored, loose, strict=True)
    ]
    return replace(result, benchmarks=summarize_benchmarks(answered))


def _rows_by_benchmark(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Number and hash of each benchmark's rows, by which two evaluations of it are compared
    whatever else was evaluated with them."""
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if name := benchmark_of(prompt):
            found.setdefault(name, []).append(prompt)
    return {name: of_rows(rows) for name, rows in found.items()}


async def run_evaluation(config: Config) -> EvaluateResult:
    """`herl eval`: evaluate the Hugging Face folder `model.path` on `data.eval`.

    Raises:
        ValueError: `data.eval` is empty, or bad input.
    """
    if not config.data.eval:
        raise ValueError("data.eval is empty: give the held-out rows to evaluate on")
    inputs = load_inputs(config, training=False)
    for name, notes in shortcomings(inputs.eval).items():
        logger.warning("%s: %s", name, "; ".join(notes))
    with RunFolder.create(config, purpose="eval", fingerprints=inputs.fingerprints) as folder:
        async with open_eval_parts(config, inputs) as parts:
            folder.saw_nodes(parts.nodes)
            try:
                result, groups = await evaluate(parts, inputs.eval)
            except PipelineError as error:  # what is scored is kept
                folder.log_rollouts("unfinished", error.finished)
                raise
            folder.log_rollouts("eval", groups)
            result = await _with_loose(result, groups, parts)
            restarts = parts.restarts.metrics()
        folder.log(0, result.metrics() | restarts)
        folder.write_json(EVALUATED, result.as_json() | {"rows": _rows_by_benchmark(inputs.eval)})
    get_console().print(evaluation_tables(result))
    if result.benchmarks:
        get_console().print(benchmark_tables(result.as_json()["benchmarks"]))
    logger.info("all numbers: %s; curves and answers: herl report %s",
                folder.path / EVALUATED, folder.path)  # fmt: skip
    return EvaluateResult(folder.path, result)
