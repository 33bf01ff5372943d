"""What a run will ask its judge: calls, tokens and cost of a step, an evaluation and the run.

Criteria are counted in the rows where `data.train` and `data.eval` are there, else assumed. Every
response of a step is judged, revisions included, `judge.samples` times; equal responses and what
the cache knows cost less, retries more: neither is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from herl_megatron.config.longest import eval_response_tokens
from herl_megatron.config.schema import Config
from herl_megatron.data.prompt_source import parsed_rows
from herl_megatron.hindsight.known_methods import open_method
from herl_megatron.plan.machines import Assumptions
from herl_megatron.rubrics.rubric import judge_format
from herl_megatron.types import Rubric


@dataclass(frozen=True)
class JudgeWork:
    """Means, so not whole numbers; cost by `judge.price_in` and `price_out`."""

    calls: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    cost: float = 0.0

    def times(self, count: float) -> JudgeWork:
        """So many of it."""
        return JudgeWork(
            self.calls * count, self.tokens_in * count, self.tokens_out * count, self.cost * count
        )

    def plus(self, other: JudgeWork) -> JudgeWork:
        """Both."""
        return JudgeWork(
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.cost + other.cost,
        )


@dataclass(frozen=True)
class JudgePlan:
    """step, evaluation: one of each; run: all steps and `evaluations` evaluations, None where the
    number of steps is not known (`train.epochs` without the rows here).

    counted: where the numbers of criteria come from.
    paused_after: steps after which a cap pauses the run; None for none.
    """

    step: JudgeWork
    evaluation: JudgeWork
    evaluations: int | None
    run: JudgeWork | None
    counted: str
    paused_after: int | None


@dataclass(frozen=True)
class _Rows:
    """Of a file: rows, and how many calls and criteria one response to a mean row makes."""

    count: int
    calls: float
    criteria: float


def plan_judge(config: Config, assumed: Assumptions) -> JudgePlan | None:
    """None without a judge (`judge.base_url` is empty).

    Raises:
        ValueError: a row of the data has no rubric that can be read (file and line).
    """
    if not config.judge.base_url:
        return None
    guess = _Rows(0, 1.0, assumed.judge_criteria)
    train, held_out = _count((config.data.train,)), _count(config.data.eval_files)
    longest = config.rollout.max_response_tokens
    step = _work(config, assumed, train or guess, longest=longest)
    step = step.times(step_responses(config, assumed))
    steps, evaluation = config.train.steps, JudgeWork()
    evaluations = _evaluations(config, steps) if held_out is not None and steps is not None else 0
    if held_out is not None:
        responses = held_out.count * config.eval.samples_per_prompt
        longest = eval_response_tokens(config)
        evaluation = _work(config, assumed, held_out, longest=longest).times(responses)
    counted = [
        f"{key} ({rows.count} rows, {rows.criteria:.1f} criteria for the judge in a mean one)"
        if rows
        else f"{key} is not here: {missing}"
        for key, rows, missing in (
            ("data.train", train, f"{assumed.judge_criteria:g} criteria a response assumed"),
            ("data.eval", held_out, "no evaluation is counted"),
        )
    ]
    return JudgePlan(
        step=step,
        evaluation=evaluation,
        evaluations=None if steps is None else evaluations,
        run=None if steps is None else step.times(steps).plus(evaluation.times(evaluations)),
        counted="; ".join(counted),
        paused_after=_paused_after(config, step, evaluation),
    )


def step_responses(config: Config, assumed: Assumptions) -> float:
    """First samples and revisions of a step."""
    method = open_method(config.hindsight)
    revises = method is not None and method.samples
    rows = config.train.prompts_per_step * config.rollout.group_size
    return rows * (1 + (assumed.revised if revises else 0))


def _work(config: Config, assumed: Assumptions, rows: _Rows, *, longest: int) -> JudgeWork:
    """The judge's work on one response to a mean row. longest: tokens of a response at most."""
    judge = config.judge
    shown = assumed.judge_fixed_tokens + assumed.mean_prompt * config.data.max_prompt_tokens
    shown += assumed.mean_response * longest
    tokens_in = rows.calls * shown + rows.criteria * assumed.judge_criterion_tokens_in
    tokens_out = rows.criteria * assumed.judge_criterion_tokens_out
    cost = (tokens_in * judge.price_in + tokens_out * judge.price_out) / 1e6
    return JudgeWork(rows.calls, tokens_in, tokens_out, cost).times(judge.samples)


def _evaluations(config: Config, steps: int) -> int:
    """Before the first step, every `train.eval_every` within the run, after the last."""
    every = config.train.eval_every
    within = (steps - 1) // every if every and steps else 0
    return 1 + within + (steps > 0)


def _paused_after(config: Config, step: JudgeWork, evaluation: JudgeWork) -> int | None:
    """The first evaluation, then steps with their share of the evaluations between them; within a
    run of a length that is not known, any number of steps."""
    train, judge = config.train, config.judge
    share = 1 / train.eval_every if train.eval_every else 0.0
    each = step.plus(evaluation.times(share))
    ends = [
        max(1, int((cap - first) / of_step))
        for cap, first, of_step in (
            (judge.max_calls, evaluation.calls, each.calls),
            (judge.max_cost, evaluation.cost, each.cost),
        )
        if cap and of_step
    ]
    return min((end for end in ends if train.steps is None or end < train.steps), default=None)


def _count(paths: Sequence[str]) -> _Rows | None:
    """Of all files together; None where there is none, or one of them is not here."""
    if not paths or not all(path and Path(path).is_file() for path in paths):
        return None
    found = [shape for path in paths for _, shape in parsed_rows(path, _asked)]
    rows = len(found)
    calls, criteria = (sum(values) for values in zip(*found, strict=True))
    return _Rows(rows, calls / rows, criteria / rows)


def _asked(row: object) -> tuple[int, int]:
    """Calls and criteria of one response to a row; the rest of the row is for `herl train`."""
    try:
        rubric: Any = dict(cast(Any, row))["rubric"]
        criteria = sum(criterion.get("kind") == "judge" for criterion in rubric["criteria"])
        form = judge_format(Rubric((), rubric.get("aggregation", Rubric(()).aggregation)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError("no rubric with criteria can be read in this row") from error
    return form.calls(criteria), criteria
