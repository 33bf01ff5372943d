"""Scores of whole rubrics: rules by the pool, statements by the judge, both at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from herl_megatron.config.schema import JudgeConfig
from herl_megatron.observability.phases import phases
from herl_megatron.rubrics.budget import Budget
from herl_megatron.rubrics.group_reward import GroupReward, RewardedScorer, RubricScorer
from herl_megatron.rubrics.judgement import was_refused
from herl_megatron.rubrics.rubric import (
    answer_part,
    asks_judge,
    judge_format,
    no_answer_result,
    score_no_answer,
    score_response,
)
from herl_megatron.types import CriterionResult, Prompt, Rubric, Score, Unscored, Verdict

if TYPE_CHECKING:  # it takes half a second to import, and most runs ask no judge
    from herl_megatron.rubrics.client import JudgeClient
    from herl_megatron.rubrics.judge.grader_prompt import GraderPrompt


class RulePool(Protocol):
    """What is needed of `rubrics.pool.ScoringPool`."""

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order."""
        ...

    async def score_loosely(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """The same by the best of a text's eight variants."""
        ...

    def metrics(self) -> dict[str, float]:
        """Counts since the last call."""
        ...

    def shutdown(self) -> None:
        """End it."""
        ...


async def open_judge(
    config: JudgeConfig,
    prompts: Sequence[Prompt],
    *,
    spent: Path | None = None,
    stops: bool = True,
) -> JudgeClient | None:
    """A judge that has answered one small question; None where no rubric asks one.

    spent, stops: where its cost is kept, and whether a cap ends it at once (`rubrics.budget`).

    Raises:
        ValueError: as `require_judge`, a judge that refuses or does not answer, a cap that is
            reached before the start.
    """
    if not require_judge(config, prompts):
        return None
    from herl_megatron.rubrics.client import JudgeClient

    budget = Budget(config, file=spent, stops=stops)
    budget.require_room()
    judge = JudgeClient(config, budget)
    try:
        with phases(f"asking the judge at {config.base_url}", announce=True):
            await judge.preflight()
    except BaseException:
        await judge.close()
        raise
    return judge


def require_judge(config: JudgeConfig, prompts: Sequence[Prompt]) -> bool:
    """Whether some rubric asks a judge; looks at files and environment only.

    Raises:
        ValueError: one does and none is configured, or its section cannot work.
    """
    asking = [prompt.id for prompt in prompts if asks_judge(prompt.rubric)]
    if not asking:
        return False
    if not config.base_url:
        raise ValueError(
            f"{len(asking)} of {len(prompts)} rows have criteria for a judge (the first is"
            f" {asking[0]!r}), but judge.base_url is empty; set judge.base_url and judge.model to"
            " an OpenAI-compatible endpoint, for example one of `vllm serve MODEL`"
        )
    from herl_megatron.rubrics.client import check_judge, read_grader

    check_judge(config)
    if (grader := read_grader(config)) is not None:
        _require_fit(grader, config, prompts)
    return True


def _require_fit(grader: GraderPrompt, config: JudgeConfig, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError, naming the row, where a benchmark's prompt is not for it."""
    for prompt in prompts:
        if not asks_judge(prompt.rubric):
            continue
        if problem := grader.problem(prompt, judge_format(prompt.rubric)):
            raise ValueError(
                f"judge.grader_prompt {config.grader_prompt!r} is not for row {prompt.id!r}:"
                f" {problem}"
            )


class Scorer:
    """`score_group` for the rollout pipeline, evaluation and `herl score`.

    It owns `pool`, `judge` and `group_reward`; without a judge, no rubric may ask one. Texts are
    whole responses: only what follows `answer_after` in them is scored (`rubric.answer_part`).
    """

    def __init__(
        self,
        pool: RulePool,
        judge: JudgeClient | None,
        *,
        answer_after: str = "",
        group_reward: GroupReward | None = None,
    ) -> None:
        self._pool = pool
        self._judge = judge
        self._answer_after = answer_after
        self._group_reward = group_reward
        self._begun: dict[tuple[str, str], asyncio.Task[list[CriterionResult]]] = {}

    def of_training(self) -> RubricScorer:
        """What gives training its rewards: the group's where there is one, else this scorer."""
        if self._group_reward is None:
            return self
        return RewardedScorer(self, self._group_reward, answer_after=self._answer_after)

    def start_judging(self, prompt: Prompt, text: str) -> None:
        """Ask the judge about a response before its group is complete.

        `score_group` picks the judgement up, and raises what went wrong with it.
        """
        answer = answer_part(text, self._answer_after)
        if answer is not None and (prompt.id, answer) not in self._begun:
            task = asyncio.create_task(self._judged(prompt, answer))
            # Seen, also where the group is given up and nobody asks for it any more.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._begun[prompt.id, answer] = task

    async def _judged(self, prompt: Prompt, text: str) -> list[CriterionResult]:
        """The judge's results on one response."""
        assert self._judge is not None, f"prompt {prompt.id} needs a judge and there is none"
        asked = [c for c in prompt.rubric.criteria if c.kind == "judge"]
        return await self._judge.judge(prompt, text, asked)

    async def _judgement(
        self, prompt: Prompt, text: str, begun: asyncio.Task[list[CriterionResult]] | None
    ) -> list[CriterionResult]:
        """What was begun early; where that had failed before now, maybe in an outage that is over,
        it is asked once more, but not what the judge has refused."""
        if begun is None:
            return await self._judged(prompt, text)
        early = begun.done()
        results = await begun
        failed = any(r.verdict is Verdict.UNVERIFIABLE and not was_refused(r) for r in results)
        return await self._judged(prompt, text) if early and failed else results

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order.

        Raises:
            JudgeError: the judge cannot be used any more; nothing is scored without it.
        """
        answers = [answer_part(text, self._answer_after) for text in texts]
        rubric, blank_for_none = prompt.rubric, [answer or "" for answer in answers]
        if asks_judge(rubric):
            rules, judged = await asyncio.gather(
                self._rules(prompt, blank_for_none), self._judgements(prompt, answers)
            )
            scores = [
                ruled if isinstance(ruled, Unscored) else score_response(rubric, ruled + results)
                for ruled, results in zip(rules, judged, strict=True)
            ]
        else:
            scores = await self._pool.score_group(prompt, blank_for_none)
        return [
            score_no_answer(rubric, score) if answer is None else score
            for answer, score in zip(answers, scores, strict=True)
        ]

    async def _judgements(
        self, prompt: Prompt, answers: Sequence[str | None]
    ) -> list[list[CriterionResult]]:
        """The judge's results per answer; it is not asked where there is none."""
        given = dict.fromkeys(answer for answer in answers if answer is not None)
        begun = {answer: self._begun.pop((prompt.id, answer), None) for answer in given}
        unasked = [
            no_answer_result(prompt.rubric, criterion)
            for criterion in prompt.rubric.criteria
            if criterion.kind == "judge"
        ]
        asked = [answer for answer in answers if answer is not None]
        judged = await asyncio.gather(*(self._judgement(prompt, a, begun[a]) for a in asked))
        results = iter(judged)
        return [unasked if answer is None else next(results) for answer in answers]

    async def score_loosely(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """As `score_group` by the best of a text's eight variants, of a rubric of rules alone."""
        assert not asks_judge(prompt.rubric), f"prompt {prompt.id}: a judge has no loose mode"
        answers = [answer_part(text, self._answer_after) for text in texts]
        scores = await self._pool.score_loosely(prompt, [answer or "" for answer in answers])
        return [
            score_no_answer(prompt.rubric, score) if answer is None else score
            for answer, score in zip(answers, scores, strict=True)
        ]

    async def _rules(
        self, prompt: Prompt, texts: Sequence[str]
    ) -> list[list[CriterionResult] | Unscored]:
        """The rules' results per text; Unscored where the pool has none (a crash, a time-out)."""
        criteria = tuple(c for c in prompt.rubric.criteria if c.kind == "rule")
        if not criteria:
            return [[] for _ in texts]
        scores = await self._pool.score_group(replace(prompt, rubric=Rubric(criteria)), texts)
        return [
            score if isinstance(score, Unscored) and not score.results else list(score.results)
            for score in scores
        ]

    def paused_s(self) -> float:
        """Seconds that scoring has been paused so far because the judge was away."""
        return self._judge.paused_s() if self._judge is not None else 0.0

    def metrics(self) -> dict[str, float]:
        """`scoring/...` and, with a judge, `judge/...` since the last call."""
        judge = self._judge.metrics() if self._judge is not None else {}
        reward = self._group_reward.metrics() if self._group_reward is not None else {}
        return self._pool.metrics() | judge | reward

    def shutdown(self) -> None:
        """Stop the processes; `close` also ends the judge's connections."""
        if self._group_reward is not None:
            self._group_reward.close()
        self._pool.shutdown()

    async def close(self) -> None:
        """End everything."""
        for task in self._begun.values():
            task.cancel()
        await asyncio.gather(*self._begun.values(), return_exceptions=True)
        if self._judge is not None:
            await self._judge.close()
        self.shutdown()
