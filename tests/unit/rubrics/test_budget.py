"""The judge's budget: counted to the call, kept over starts, and never passed in silence."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.rules.scoring import judge_problems
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.budget import Budget, BudgetSpent, Spent
from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.rubrics.scorer import open_judge
from tests.fake_judge import FakeJudge, completion, fake_judge
from tests.unit.rubrics.client_cases import make_prompt, settings

# The fake judge takes 100 tokens in and 10 out: 1 and 1 at these prices, 2 a call.
PRICES: dict[str, Any] = {"price_in": 10_000.0, "price_out": 100_000.0}
CALL = (100, 10)


def budget(stops: bool = True, file: Path | None = None, **caps: Any) -> Budget:
    return Budget(JudgeConfig(**PRICES, **caps), file=file, stops=stops)


def step(of: Budget, calls: int) -> str:
    for _ in range(calls):
        of.call()
        of.spend(CALL)
    return of.pause()


def test_calls_tokens_and_cost_are_summed() -> None:
    one = budget()
    step(one, 3)
    assert one.spent == Spent(calls=3, tokens_in=300, tokens_out=30, cost=6.0)
    assert one.reached() == "" and one.pause() == ""  # 0 is no cap


def test_a_call_beyond_the_cap_is_refused_and_says_what_is_spent() -> None:
    one = budget(max_calls=2)
    step(one, 2)
    with pytest.raises(BudgetSpent, match=r"judge\.max_calls 2 is reached: 2 calls at a cost of 4"):
        one.call()
    assert one.refused and one.spent.calls == 2


def test_a_run_is_paused_before_a_step_that_would_not_fit() -> None:
    """Cap 20: 6 after the first step (not compared: an evaluation may be in it), 10 after the
    second, which took 4; then one of 8, after which 2 are left."""
    one = budget(stops=False, max_cost=20.0)
    assert step(one, 3) == ""
    assert step(one, 2) == ""
    said = step(one, 4)
    assert said.startswith(
        "judge.max_cost 20 is not enough for one more step, which took up to 8: 9 calls at a cost"
        " of 18 so far"
    )
    assert said.endswith("raise the cap and go on with run.resume=true")


def test_a_step_under_way_is_never_cut() -> None:
    one = budget(stops=False, max_calls=3)
    assert step(one, 5).startswith("judge.max_calls 3 is reached: 5 calls")


def test_what_is_spent_outlives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "judge_spent.json"
    first = budget(file=file, max_cost=5.0)
    step(first, 2)
    first.save()
    again = budget(file=file, max_cost=5.0)
    assert again.spent == Spent(2, 200, 20, 4.0)
    step(again, 1)
    again.save()
    with pytest.raises(ValueError, match=r"max_cost 5 is reached: 3 calls at a cost of 6 so far"):
        budget(file=file, max_cost=5.0).require_room()
    budget(file=file, max_cost=7.0).require_room()


@pytest.mark.parametrize("text", ["", "[]", '{"calls": "many"}', '{"cost": -1}', '{"euros": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "judge_spent.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"judge_spent\.json cannot be read .* remove it to count"):
        budget(file=file)


def test_a_cost_cap_needs_prices() -> None:
    (problem,) = judge_problems(JudgeConfig(max_cost=1.0))
    assert "judge.max_cost is 1, but judge.price_in and judge.price_out are 0" in problem
    assert list(judge_problems(JudgeConfig(max_cost=1.0, price_out=2.0))) == []


def judged(server: FakeJudge, of: Budget, texts: list[str], **changes: Any) -> list[Any]:
    """What becomes of each text, one after the other."""

    async def run() -> list[Any]:
        client = JudgeClient(settings(server, **PRICES, **changes), of)
        prompt = make_prompt()
        ends: list[Any] = []
        try:
            for text in texts:
                try:
                    ends.append(await client.judge(prompt, text, prompt.rubric.criteria))
                except BudgetSpent as error:
                    ends.append(error)
        finally:
            await client.close()
        return ends

    return asyncio.run(run())


def test_the_client_sends_no_call_beyond_the_cap(tmp_path: Path) -> None:
    file = tmp_path / "judge_spent.json"
    with fake_judge() as server:
        ends = judged(server, budget(file=file, max_calls=2), ["one", "two", "three", "four"])
        assert len(server.requests) == 2
    assert [isinstance(end, BudgetSpent) for end in ends] == [False, False, True, True]
    assert json.loads(file.read_text()) == {
        "calls": 2, "tokens_in": 200, "tokens_out": 20, "cost": 4.0
    }  # fmt: skip


def test_answers_under_way_are_kept_when_the_budget_ends() -> None:
    """Two are asked at once with a cap of one: the slow answer is paid for and cached."""

    async def run(server: FakeJudge, cache: str) -> Spent:
        of = budget(max_calls=1)
        client = JudgeClient(settings(server, **PRICES, cache=cache), of)
        prompt = make_prompt()
        asked = [client.judge(prompt, text, prompt.rubric.criteria) for text in ("one", "two")]
        first, second = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(second, BudgetSpent) or isinstance(first, BudgetSpent)
        await client.close()
        return of.spent

    with fake_judge(lambda response, call: "slow:0.3") as server:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            cache = f"{folder}/cache.sqlite"
            assert asyncio.run(run(server, cache)).tokens_in == 100
            assert len(server.requests) == 1
            ends = judged(server, budget(), ["one", "two"], cache=cache)
            assert len(server.requests) == 2  # the first was not paid again
            assert not any(isinstance(end, BudgetSpent) for end in ends)


def opened(server: FakeJudge, **changes: Any) -> None:
    async def run() -> None:
        client = await open_judge(settings(server, **PRICES, **changes), [make_prompt()])
        assert client is not None
        await client.close()

    asyncio.run(run())


def test_a_judge_that_does_not_count_tokens_cannot_be_capped_by_cost() -> None:
    silent = json.loads(completion('{"s1": {"evidence": "Blue", "true": true}}'))
    del silent["usage"]
    with fake_judge(lambda response, call: f"body:{json.dumps(silent)}") as server:
        opened(server, max_calls=9)
        with pytest.raises(ValueError, match="does not say how many tokens a call took"):
            opened(server, max_cost=9.0)


def test_nothing_is_asked_where_an_earlier_start_spent_it_all(tmp_path: Path) -> None:
    file = tmp_path / "judge_spent.json"
    file.write_text('{"calls": 7, "cost": 3.5}')
    with fake_judge() as server:
        config = settings(server, max_calls=7)
        with pytest.raises(ValueError, match=r"judge\.max_calls 7 is reached: 7 calls .* 3\.5"):
            asyncio.run(open_judge(config, [make_prompt()], spent=file))
        assert server.requests == []
