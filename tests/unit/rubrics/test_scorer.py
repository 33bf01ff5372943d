"""Rules and judge together: one score per response, failures of either never a number."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.aggregations import graded_result
from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.rubrics.judge.formats import BANDS
from herl_megatron.rubrics.rubric import score_no_answer
from herl_megatron.rubrics.scorer import Scorer, open_judge, require_judge
from herl_megatron.rubrics.worker import score_texts
from herl_megatron.types import (
    Criterion,
    CriterionResult,
    Message,
    Prompt,
    Rubric,
    Score,
    Scored,
    Unscored,
    Verdict,
)
from tests.fake_judge import FakeJudge, fake_judge

T = TypeVar("T")
ROOT = Path(__file__).parents[3]
RULE = Criterion("rule", "rule", check="ifeval/punctuation:no_comma")
TRUE = Criterion("true", "judge", description='The response contains the word "river".', weight=2)
BAD = Criterion("bad", "judge", description='The response contains the word "mud".',
                polarity="negative")  # fmt: skip
MIXED = Prompt("mixed", (Message("user", "Write."),), Rubric((RULE, TRUE, BAD)))
RULES = Prompt("rules", (Message("user", "Write."),), Rubric((RULE,)))


class LocalPool:
    """The pool's work without its processes; `broken` texts are those that crash a worker."""

    def __init__(self) -> None:
        self.broken = False
        self.groups: list[str] = []

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        self.groups.append(prompt.id)
        if self.broken:
            return [Unscored("the group crashed 2 scoring workers") for _ in texts]
        return score_texts(prompt.rubric, texts, check_timeout_s=5)

    async def score_loosely(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        return score_texts(prompt.rubric, texts, check_timeout_s=5, mode="loose")

    def metrics(self) -> dict[str, float]:
        return {"scoring/worker_crashes": float(self.broken)}

    def shutdown(self) -> None:
        self.groups.append("shut down")


def settings(server: FakeJudge) -> JudgeConfig:
    return JudgeConfig(base_url=server.url, model="m", cache="", retries=1, retry_wait_s=0.01)


def use(server: FakeJudge, work: Callable[[Scorer, Any], Awaitable[T]]) -> T:
    async def run() -> T:
        pool: Any = LocalPool()
        scorer = Scorer(pool, JudgeClient(settings(server)))
        try:
            return await work(scorer, pool)
        finally:
            await scorer.close()
            assert pool.groups[-1] == "shut down"

    return asyncio.run(run())


def test_rewards_of_mixed_rubrics_are_as_by_hand() -> None:
    """Weights 1, 2 and, for the negative one, 1."""
    texts = ["A river.", "A river, here.", "mud in a river", "mud, mud"]

    async def work(scorer: Scorer, pool: LocalPool) -> list[Score]:
        return await scorer.score_group(MIXED, texts)

    with fake_judge() as server:
        scores = use(server, work)
        assert server.calls == dict.fromkeys(texts, 1)
    assert [s.reward for s in scores if isinstance(s, Scored)] == [1.0, 0.75, 0.75, 0.0]
    worst = scores[3]
    assert isinstance(worst, Scored) and worst.unmet == ("rule", "true", "bad")


def test_failure_of_either_side_unscores_that_response_and_says_why() -> None:
    def script(response: str, call: int) -> str:
        return "500" if response == "A lake." else "ok"

    async def work(scorer: Scorer, pool: LocalPool) -> Any:
        scores = await scorer.score_group(MIXED, ["A lake.", "A river."])
        pool.broken = True
        crashed = await scorer.score_group(MIXED, ["A river."])
        first, second = scorer.metrics(), scorer.metrics()
        return scores, crashed, first, second

    with fake_judge(script) as server:
        (bad, good), crashed, first, second = use(server, work)
    assert isinstance(bad, Unscored) and "criterion true: judge: server: " in bad.reason
    assert "HTTP 500" in bad.reason
    assert [r.verdict.value for r in bad.results] == ["followed", "unverifiable", "unverifiable"]
    assert isinstance(good, Scored) and good.reward == 1.0
    assert crashed == [Unscored("the group crashed 2 scoring workers")]
    assert first["judge/unjudged"] == 1 and second["judge/unjudged"] == 0
    assert first["scoring/worker_crashes"] == 1


def test_a_judgement_that_failed_early_is_asked_again_when_its_group_is_complete() -> None:
    """Its two attempts (`retries: 1`) fell into an outage; one that succeeded stays as it is."""

    def script(response: str, call: int) -> str:
        return "500" if response == "A river." and call < 2 else "ok"

    async def work(scorer: Scorer, pool: LocalPool) -> list[Score]:
        texts = ["A river.", "A lake."]
        for text in texts:
            scorer.start_judging(MIXED, text)
        while scorer.metrics()["judge/unjudged"] == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the other one's answer
        return await scorer.score_group(MIXED, texts)

    with fake_judge(script) as server:
        river, lake = use(server, work)
        assert server.calls == {"A river.": 3, "A lake.": 1}
    assert isinstance(river, Scored) and river.reward == 1.0
    assert isinstance(lake, Scored)


def test_a_judgement_that_keeps_failing_is_asked_again_once() -> None:
    async def work(scorer: Scorer, pool: LocalPool) -> list[Score]:
        scorer.start_judging(MIXED, "A river.")
        while scorer.metrics()["judge/unjudged"] == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # until its task has ended
        return await scorer.score_group(MIXED, ["A river."])

    with fake_judge(lambda response, call: "500") as server:
        (score,) = use(server, work)
        assert server.calls == {"A river.": 4}
    assert isinstance(score, Unscored)


def test_thinking_is_neither_checked_nor_judged() -> None:
    """The comma and the mud are in the thinking; of what was cut before its end nothing is true,
    not even that it is short, and no judge is asked."""
    texts = ["<think>mud, mud</think>A river.", "<think>A river. I wonder", "</think>"]
    limit = Criterion(
        "limit", "rule", check="muldimif/Length/Words", params={"text": "At most 5 words"}
    )
    prompt = Prompt("thinks", MIXED.messages, Rubric((RULE, TRUE, BAD, limit)))

    async def run(pool: Any, judge: JudgeClient) -> list[Score]:
        scorer = Scorer(pool, judge, answer_after="</think>")
        try:
            for text in texts[:2]:
                scorer.start_judging(prompt, text)
            return await scorer.score_group(prompt, texts)
        finally:
            await scorer.close()

    async def with_judge() -> list[Score]:
        return await run(LocalPool(), JudgeClient(settings(server)))

    with fake_judge() as server:
        answered, cut, blank = asyncio.run(with_judge())
        assert server.calls == {"A river.": 1, "": 1}  # an answer that is blank is judged
    assert isinstance(answered, Scored) and answered.reward == 1.0
    assert isinstance(cut, Scored) and cut.unmet == ("rule", "true", "limit")
    assert cut.satisfied == ("bad",)  # it holds no mud
    assert isinstance(blank, Scored) and "limit" in blank.satisfied


def test_a_response_without_an_answer_has_the_lowest_grade_and_what_is_left_out_stays_so() -> None:
    grade = Criterion("depth", "judge", description="Depth.", params={"bands": {}})
    graded = score_no_answer(
        Rubric((grade,), "writingbench"), Unscored("x", (graded_result("depth", BANDS, 9),))
    )
    assert isinstance(graded, Scored) and graded.results == (graded_result("depth", BANDS, 1),)
    unknown = CriterionResult("true", Verdict.UNVERIFIABLE, "no such data", True)
    slow = CriterionResult("rule", Verdict.UNVERIFIABLE, "too slow")
    score = score_no_answer(Rubric((RULE, TRUE)), Unscored("too slow", (slow, unknown)))
    assert isinstance(score, Scored) and (score.unmet, score.left_out) == (("rule",), ("true",))
    crashed = Unscored("the group crashed 2 scoring workers")
    assert score_no_answer(Rubric((RULE,)), crashed) is crashed


def test_rubric_of_rules_alone_asks_no_judge() -> None:
    async def work(scorer: Scorer, pool: LocalPool) -> list[Score]:
        return await scorer.score_group(RULES, ["a", "a, b"])

    with fake_judge() as server:
        scores = use(server, work)
        assert [s.reward for s in scores if isinstance(s, Scored)] == [1.0, 0.0]
        assert server.calls.total() == 0


def test_judge_rows_need_a_judge_and_others_do_not() -> None:
    nothing = JudgeConfig()
    assert require_judge(nothing, [RULES]) is False
    with pytest.raises(ValueError, match=r"1 of 2 rows .*'mixed'.*judge.base_url is empty"):
        require_judge(nothing, [RULES, MIXED])
    assert asyncio.run(open_judge(nothing, [RULES])) is None
    with fake_judge(lambda response, call: "wrong_json") as server:
        with pytest.raises(ValueError, match="does not work: an answer that is not as asked for"):
            asyncio.run(open_judge(settings(server), [MIXED]))
        assert server.calls.total() == 2


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"base_url": "http://me:sk-secret@host/v1"}, "holds a user name or password"),
        ({"base_url": "http://host/v1?key=sk-secret"}, "query"),
        ({"base_url": "http://host/v1", "api_key_env": "sk-secret"}, "must be the name of"),
        ({"base_url": "host:8000"}, "must read like"),
        ({"base_url": "http://host/v1", "model": ""}, "judge.model is empty"),
        ({"base_url": "http://host/v1", "prompt": "no/such/file"}, "no such file"),
        ({"base_url": "http://host/v1", "deadline_s": 1.0}, "deadline_s is 1"),
        ({"base_url": "http://host/v1", "samples": 2}, "use an odd number"),
        ({"base_url": "http://host/v1", "api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
    ],
)
def test_section_that_cannot_work_is_refused_without_naming_a_secret(
    given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        require_judge(JudgeConfig(**{"model": "m"} | given), [MIXED])
    assert "sk-secret" not in str(raised.value)


def test_key_in_a_configuration_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(ROOT / "configs/quickstart_cpu.yaml", ["judge.api_key=sk-secret"])
    assert "did you mean judge.api_key_env?" in str(raised.value)
    assert "sk-secret" not in str(raised.value)


def test_loosely_the_answer_alone_has_variants() -> None:
    """Without its first line the second answer has no comma; the third is none."""
    scorer = Scorer(LocalPool(), None, answer_after="</think>")
    texts = [
        "a, b</think>no",
        "</think>Sure, here:\nno",
        "a thought without an end",
        "</think>a, b",
    ]
    scores = asyncio.run(scorer.score_loosely(RULES, texts))
    assert [score.reward for score in scores if isinstance(score, Scored)] == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(AssertionError, match="a judge has no loose mode"):
        asyncio.run(scorer.score_loosely(MIXED, texts))
