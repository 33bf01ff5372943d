"""One refused response costs itself; a probe tells whether the endpoint has gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.rubrics.failures import JudgeError
from herl_megatron.rubrics.scorer import Scorer
from herl_megatron.types import CriterionResult, Unscored
from herl_megatron.types import Verdict as V
from tests.fake_judge import FakeJudge, fake_judge
from tests.unit.rubrics.client_cases import (
    TEXTS,
    expected,
    judge_all,
    make_prompt,
    settings,
    use,
    verdicts,
)

PROBE = "Blue."
MANY = [f"stone number {i}" for i in range(60)]


def after_preflight(
    config: JudgeConfig, texts: Sequence[str]
) -> tuple[list[list[CriterionResult]], dict[str, float]]:
    """Results of `texts`, asked as in a run: after a preflight that every address passed.

    What ends it has to reach everybody, or this waits for ever.
    """
    prompt = make_prompt()

    async def work(client: JudgeClient) -> Any:
        await client.preflight()
        asked = (client.judge(prompt, text, prompt.rubric.criteria) for text in texts)
        results = await asyncio.gather(*asked, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results, client.stats()

    answer: tuple[list[list[CriterionResult]], dict[str, float]] = use(config, work)
    return answer


@pytest.mark.parametrize("status", ["401", "403", "404", "405", "402"])
def test_a_refused_response_costs_itself_and_one_probe(status: str) -> None:
    def script(response: str, call: int) -> str:
        return f"says{status}:flagged as violence" if response == MANY[30] else "ok"

    with fake_judge(script) as server:
        results, stats = after_preflight(settings(server, concurrency=4), MANY)
        assert server.calls == {PROBE: 2} | dict.fromkeys(MANY, 1)
    bad = results.pop(30)
    assert [verdicts(r) for r in results] == [[V.NOT_FOLLOWED, V.FOLLOWED, V.NOT_FOLLOWED]] * 59
    assert verdicts(bad) == [V.UNVERIFIABLE] * 3
    assert bad[0].reason.startswith("judge: refused: ") and f"HTTP {status}" in bad[0].reason
    assert "flagged as violence" in bad[0].reason
    assert (stats["unjudged"], stats["failures_refused"], stats["pauses"]) == (1, 1, 0)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_moderated_texts_do_not_double_the_calls(concurrency: int) -> None:
    """Every third one, 20 of 60: one probe at the first; they never come four in a row."""

    def script(response: str, call: int) -> str:
        return "403" if response in MANY[::3] else "ok"

    with fake_judge(script) as server:
        results, stats = after_preflight(settings(server, concurrency=concurrency), MANY)
        assert {server.calls[text] for text in MANY} == {1}
        assert server.calls[PROBE] - 1 <= (1 if concurrency == 1 else 4)
    refused = [i for i, r in enumerate(results) if verdicts(r) == [V.UNVERIFIABLE] * 3]
    assert refused == list(range(0, 60, 3)) and stats["failures_refused"] == 20


def test_a_key_that_is_revoked_ends_it_with_the_servers_words_and_few_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-verysecret123")

    def script(response: str, call: int) -> str:
        revoked = "says401:Key sk-ver...t123 was revoked by its owner"
        return "ok" if server.calls.total() <= 11 else revoked

    with fake_judge(script) as server:
        config = settings(server, concurrency=4, api_key_env="TEST_JUDGE_KEY")
        with pytest.raises(JudgeError) as raised:
            after_preflight(config, MANY)
        assert server.calls.total() <= 11 + 4 + 1  # those under way, and the probe
        assert server.calls[PROBE] == 2
    said = str(raised.value)
    assert "refuses access" in said and "HTTP 401" in said and "a probe as well" in said
    assert "was revoked by its owner" in said and "sk-ver" not in said and "t123" not in said


def test_a_revoked_key_is_found_soon_after_a_moderated_text() -> None:
    """The probe of a moment ago is believed for three refusals; then they are doubted."""

    def script(response: str, call: int) -> str:
        total = server.calls.total()
        return "403" if response == MANY[5] or total > 20 else "ok"

    with fake_judge(script) as server:
        with pytest.raises(JudgeError, match="refuses access: .*HTTP 403"):
            after_preflight(settings(server, concurrency=1), MANY)
        assert server.calls[PROBE] == 3
        assert server.calls.total() == 20 + 4 + 1


def test_a_probe_that_says_nothing_ends_nothing() -> None:
    """A busy server's 503 is no sign that the key is gone; the next refusal asks again."""

    def script(response: str, call: int) -> str:
        if response == PROBE:
            return "503" if call == 1 else "ok"
        return "403" if response in MANY[10:12] else "ok"

    with fake_judge(script) as server:
        results, stats = after_preflight(settings(server, concurrency=1), MANY[:20])
        assert server.calls[PROBE] == 3
    assert [i for i, r in enumerate(results) if r[0].verdict is V.UNVERIFIABLE] == [10, 11]
    assert stats["unjudged"] == 2


def test_many_bad_requests_in_a_row_are_doubted_too() -> None:
    """A server that came back with a shorter context answers 400 to everything."""

    def script(response: str, call: int) -> str:
        return "ok" if server.calls.total() <= 10 else "says:max_model_len is 16"

    with fake_judge(script) as server:
        with pytest.raises(JudgeError, match="refuses every request: .*max_model_len is 16"):
            after_preflight(settings(server, concurrency=1), MANY)
        assert server.calls.total() == 10 + 4 + 1


def test_an_address_that_refuses_is_left_aside_while_another_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is lost: what it refused is asked for at the other one."""

    def script(response: str, call: int) -> str:
        return "ok" if lost.calls.total() <= 5 else "says401:account closed"

    with fake_judge() as well, fake_judge(script) as lost:
        config = settings(well, base_url=f"{lost.url},{well.url}", concurrency=4, retries=0)
        results, stats = after_preflight(config, MANY)
        assert lost.calls.total() <= 5 + 4 + 1 and lost.calls[PROBE] == 2
    assert {tuple(verdicts(r)) for r in results} == {(V.NOT_FOLLOWED, V.FOLLOWED, V.NOT_FOLLOWED)}
    assert stats["unjudged"] == 0 and stats["judged"] == 60
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "left aside" in said and lost.url in said and "account closed" in said


def test_when_the_last_address_refuses_it_ends() -> None:
    with fake_judge() as one, fake_judge() as other:

        def script(response: str, call: int) -> str:
            return "401" if one.calls.total() + other.calls.total() > 12 else "ok"

        one.script = other.script = script
        config = settings(one, base_url=f"{one.url},{other.url}", concurrency=4)
        with pytest.raises(JudgeError, match="refuses access"):
            after_preflight(config, MANY)
        assert one.calls.total() + other.calls.total() <= 12 + 4 + 4 + 2


def test_an_address_left_aside_does_the_work_again_when_it_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("herl_megatron.rubrics.endpoint._GONE_S", 0.2)
    caplog.set_level(logging.INFO, logger="herl_megatron")

    def script(response: str, call: int) -> str:
        return "401" if 3 <= lost.calls.total() <= 4 else "slow:0.02"

    with fake_judge(lambda response, call: "slow:0.02") as well, fake_judge(script) as lost:
        config = settings(well, base_url=f"{lost.url},{well.url}", concurrency=1)
        results, _ = after_preflight(config, MANY[:40])
        assert lost.calls.total() > 10
    assert all(verdicts(r)[1] is V.FOLLOWED for r in results)
    assert any("answers again" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("status", ["401", "403", "404", "405"])
def test_at_preflight_a_refusal_is_an_error_for_all_with_the_reason(status: str) -> None:
    with fake_judge() as well, fake_judge(lambda r, c: f"says{status}:no contract") as bad:
        config = settings(well, base_url=f"{well.url},{bad.url}")
        with pytest.raises(ValueError, match=f"does not work: .*HTTP {status}.*no contract"):
            after_preflight(config, MANY)
        assert bad.calls == {PROBE: 1} and well.calls == {PROBE: 1}


def test_without_a_preflight_an_answer_under_way_speaks_for_the_address() -> None:
    """The refused response is the first to hear from the server, and waits for the others."""

    def script(response: str, call: int) -> str:
        return "403" if response == MANY[0] else "slow:0.3"

    with fake_judge(script) as server:
        results, _ = judge_all(settings(server), MANY[:4])
        assert server.calls == dict.fromkeys(MANY[:4], 1) | {PROBE: 1}
    assert [r[1].verdict for r in results] == [V.UNVERIFIABLE, *[V.FOLLOWED] * 3]


def test_without_a_preflight_nobody_asks_twice_when_all_are_refused() -> None:
    with fake_judge(lambda response, call: "403") as server:
        with pytest.raises(JudgeError, match="refuses access"):
            judge_all(settings(server), MANY[:6])
        assert server.calls == dict.fromkeys(MANY[:6], 1)


def test_a_key_that_is_revoked_in_an_outage_ends_it() -> None:
    def script(response: str, call: int) -> str:
        total = server.calls.total()
        return "ok" if total <= 5 else "500" if total <= 9 else "says401:revoked"

    with fake_judge(script) as server:
        config = settings(server, failure_window=4, max_pause_s=60, concurrency=4)
        with pytest.raises(JudgeError, match="refuses access: .*revoked.*a probe as well"):
            after_preflight(config, MANY)


def test_of_two_addresses_the_lost_one_ends_no_pause() -> None:
    """Both fail; then one is back and the other refuses the key."""

    def sick(back: str) -> Any:
        def script(response: str, call: int) -> str:
            total = one.calls.total() + other.calls.total()
            return "ok" if total <= 6 else "500" if total <= 14 else back

        return script

    with fake_judge() as one, fake_judge() as other:
        one.script, other.script = sick("says401:revoked"), sick("ok")
        config = settings(
            one, base_url=f"{one.url},{other.url}", failure_window=4, max_pause_s=60, retries=6
        )
        results, stats = after_preflight(config, MANY[:20])
    assert all(r[1].verdict is V.FOLLOWED for r in results) and stats["unjudged"] == 0


def test_a_refused_response_is_not_asked_again_when_its_group_is_complete() -> None:
    """An outage may be over by then; a refusal is the server's last word."""
    prompt = make_prompt()

    class NoRules:
        async def score_group(self, prompt: Any, texts: Sequence[str]) -> list[Any]:
            raise AssertionError("there are no rules")

        score_loosely = score_group

        def metrics(self) -> dict[str, float]:
            return {}

        def shutdown(self) -> None: ...

    async def run(server: FakeJudge) -> Any:
        client = JudgeClient(settings(server))
        scorer = Scorer(NoRules(), client)
        try:
            await client.preflight()
            scorer.start_judging(prompt, TEXTS[0])
            while client.stats()["unjudged"] == 0:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            return await scorer.score_group(prompt, TEXTS[:2])
        finally:
            await scorer.close()

    with fake_judge(lambda r, call: "403" if r == TEXTS[0] else "ok") as server:
        bad, good = asyncio.run(run(server))
        assert server.calls == {PROBE: 2, TEXTS[0]: 1, TEXTS[1]: 1}
    assert isinstance(bad, Unscored) and "refused" in bad.reason
    assert [r.verdict for r in good.results] == expected(TEXTS[1])


def test_who_waits_for_a_probe_can_be_closed() -> None:
    """`use` asserts that no task is left."""
    prompt = make_prompt()

    def script(response: str, call: int) -> str:
        if response == PROBE and call == 1:
            return "hang"
        return "403" if response == TEXTS[0] else "ok"

    async def work(client: JudgeClient) -> None:
        await client.preflight()
        task = asyncio.create_task(client.judge(prompt, TEXTS[0], prompt.rubric.criteria))
        while client.stats()["failures_refused"] == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with fake_judge(script) as server:
        use(settings(server), work)
