"""Judging begins with the single response, not with the whole group, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import PipelineError, RolloutPipeline
from herl_megatron.rubrics.scorer import Scorer
from herl_megatron.types import (
    Completion,
    Criterion,
    CriterionResult,
    GenerateRequest,
    Message,
    Prompt,
    Rubric,
    Scored,
    Verdict,
)
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine

PROMPTS = [
    Prompt(
        f"p{i}",
        (Message("user", f"Write {i}."),),
        Rubric((Criterion("a", "judge", description="Names an owl."),)),
    )
    for i in range(3)
]
ROLLOUT = RolloutConfig(group_size=4, max_response_tokens=8)
HINDSIGHT = HindsightConfig(max_experiences=1)


class CountingJudge:
    """Says a verdict that depends on the text alone; remembers when it was asked what."""

    def __init__(self, fails: bool = False) -> None:
        self.asked: list[str] = []
        self._fails = fails

    def paused_s(self) -> float:
        return 0.0

    async def judge(
        self, prompt: Prompt, response: str, criteria: Sequence[Criterion]
    ) -> list[CriterionResult]:
        self.asked.append(f"{prompt.id}: {response}")
        await asyncio.sleep(0.001)
        if self._fails:
            raise RuntimeError("the judge is gone")
        holds = sum(map(ord, response)) % 3 == 0
        verdict = Verdict.FOLLOWED if holds else Verdict.NOT_FOLLOWED
        return [CriterionResult(criterion.id, verdict) for criterion in criteria]


class HeldEngine(FakeEngine):
    """Holds back the last rollout of each group until `release`."""

    def __init__(self) -> None:
        super().__init__(None)
        self.release = asyncio.Event()

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        if any(request.request_id.endswith("rollout3") for request in requests):
            await self.release.wait()
        return await super().generate(requests)


class LateScorer(Scorer):
    """Judges whole groups alone."""

    def start_judging(self, prompt: Prompt, text: str) -> None:
        pass


def pipeline(engine: Any, judge: Any, *, early: bool, streamed: bool = True) -> RolloutPipeline:
    kind = Scorer if early else LateScorer
    scorer = kind(None, judge)  # type: ignore[arg-type]  # no rules, so no pool
    rollout = ROLLOUT.model_copy(update={"streamed": streamed})
    return RolloutPipeline(
        [engine],
        scorer,
        CharTokenizer(),
        rollout,
        open_stage(HINDSIGHT, rollout, max_tokens=10_000),
        seed=5,
    )


def scores(groups: Any) -> list[Any]:
    return [
        (group.scores, [(r.rollout.text, r.score) for r in group.revisions]) for group in groups
    ]


def test_a_response_is_judged_while_its_group_still_decodes() -> None:
    async def run() -> tuple[int, int, int]:
        engine, judge = HeldEngine(), CountingJudge()
        running = asyncio.create_task(pipeline(engine, judge, early=True).run(PROMPTS, step=0))
        async with asyncio.timeout(30):  # a loaded machine takes its time
            while len(judge.asked) < 9:
                await asyncio.sleep(0.01)
        before = len(judge.asked)
        engine.release.set()
        groups = await running
        texts = {f"{g.group.prompt.id}: {r.text}" for g in groups for r in g.group.rollouts}
        texts |= {f"{g.group.prompt.id}: {r.rollout.text}" for g in groups for r in g.revisions}
        return before, len(judge.asked), len(texts)

    before, after, texts = asyncio.run(run())
    assert before == 9  # three of four responses of each group
    assert after == texts  # each response once, whether the group or its arrival asked first


@pytest.mark.parametrize("streamed", [True, False])
def test_scores_are_the_same_with_and_without(streamed: bool) -> None:
    found = [
        asyncio.run(
            pipeline(FakeEngine(delay), CountingJudge(), early=early, streamed=streamed).run(
                PROMPTS, step=0
            )
        )
        for early, delay in ((False, None), (True, 1), (True, 2))
    ]
    assert scores(found[0]) == scores(found[1]) == scores(found[2])
    assert any(isinstance(s, Scored) and s.reward == 1 for g in found[0] for s in g.scores)


def test_a_judge_that_fails_early_fails_the_group() -> None:
    with pytest.raises(PipelineError, match="the judge is gone"):
        asyncio.run(pipeline(FakeEngine(None), CountingJudge(True), early=True).run(PROMPTS, 0))
