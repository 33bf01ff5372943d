"""The judge's client against a scripted server: asked once, nothing lost, nothing guessed."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.rubrics.failures import JudgeError
from herl_megatron.types import Aggregation, Criterion, CriterionResult
from herl_megatron.types import Verdict as V
from tests.fake_judge import fake_judge, honest, shown_response
from tests.limits import HANG_S
from tests.unit.rubrics.client_cases import (
    TEXTS,
    WORDS,
    contains,
    expected,
    judge_all,
    make_prompt,
    settings,
    use,
    verdicts,
)


def test_every_distinct_response_costs_one_call_and_none_is_lost() -> None:
    with fake_judge(lambda response, call: "slow:0.05") as server:
        results, stats = judge_all(settings(server, concurrency=5), TEXTS + TEXTS)
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS] * 2
        assert set(server.calls) == set(TEXTS) and set(server.calls.values()) == {1}
        assert 2 <= server.most_at_once <= 5
    assert (stats["calls"], stats["shared"], stats["judged"]) == (20, 20, 20)
    assert (stats["tokens_in"], stats["tokens_out"]) == (2000, 200)


# Each fault happens to the first call about every response; then the judge is well again.
FAULTS = {
    "500": "server", "503:0.05": "server", "408": "server", "429:0.05": "rate_limit",
    "429": "rate_limit", "hang": "timeout", "drip": "timeout", "reset": "transport",
    "truncated": "transport", "half": "invalid", "html": "invalid", "no_choices": "invalid",
    "wrong_json": "invalid", "wrong_ids": "invalid", "extra_ids": "invalid", "prose": "invalid",
    "cut": "invalid", "missing:s1": "invalid", "missing:s1,s2": "invalid",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_one_more_call_and_no_verdict(fault: str) -> None:
    def script(response: str, call: int) -> str:
        return fault if call == 0 else "ok"

    with fake_judge(script) as server:
        timeout_s = 1.5 if FAULTS[fault] == "timeout" else 20.0
        results, stats = judge_all(settings(server, timeout_s=timeout_s), TEXTS[:4])
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:4]]
        assert dict(server.calls) == dict.fromkeys(TEXTS[:4], 2)
    failures = {k: v for k, v in stats.items() if k.startswith("failures_") and v}
    assert failures == {f"failures_{FAULTS[fault]}": 4.0}
    assert (stats["calls"], stats["retries"], stats["judged"], stats["unjudged"]) == (8, 4, 4, 0)


@pytest.mark.parametrize(
    "fault", ["500", "429", "hang", "reset", "wrong_json", "missing:s1", "400"]
)
def test_a_fault_that_stays_gives_a_reason_and_never_a_verdict(fault: str) -> None:
    def script(response: str, call: int) -> str:
        return fault if response == TEXTS[0] else "ok"

    with fake_judge(script) as server:
        timeout_s = 0.7 if fault == "hang" else 20.0
        config = settings(server, retries=2, timeout_s=timeout_s, canary=False)
        (bad, good), stats = judge_all(config, TEXTS[:2])
        assert verdicts(good) == expected(TEXTS[1])
        assert server.calls[TEXTS[0]] == (1 if fault == "400" else 3)  # asked again, but for a 400
    assert stats["unjudged"] == 1
    missing = [r for r in bad if r.verdict is V.UNVERIFIABLE]
    assert missing and all(
        r.reason.startswith("judge: ") and "key" not in r.reason for r in missing
    )
    if not fault.startswith("missing"):
        assert len(missing) == 3


def test_only_what_is_missing_is_asked_again() -> None:
    criteria = [contains(f"w{i}") for i in range(6)]
    prompt = make_prompt(criteria)

    def script(response: str, call: int) -> str:
        return "missing:s2,s5" if call == 0 else "ok"

    with fake_judge(script) as server:
        config = settings(server, canary=False)
        (results,), _ = judge_all(config, ["w0 w2 w4 and w5"], prompt)
        assert [r.criterion_id for r in results] == [f"w{i}" for i in range(6)]
        expected = [V.FOLLOWED if i in (0, 2, 4, 5) else V.NOT_FOLLOWED for i in range(6)]
        assert verdicts(results) == expected
        asked = [r["response_format"]["json_schema"]["schema"]["required"] for r in server.requests]
    assert [len(keys) for keys in asked] == [6, 2]


def test_retry_after_is_kept_by_all_calls() -> None:
    def script(response: str, call: int) -> str:
        return "429:0.6" if response == TEXTS[0] and call == 0 else "ok"

    with fake_judge(script) as server:
        judge_all(settings(server, concurrency=1, timeout_s=2), TEXTS[:3])
        gaps = [b - a for a, b in zip(server.at, server.at[1:], strict=False)]
    assert len(gaps) == 3 and gaps[0] >= 0.58
    assert server.most_at_once == 1


def test_deadline_counts_calls_and_waits_but_not_the_queue() -> None:
    with fake_judge(lambda response, call: "slow:0.15") as server:
        config = settings(server, concurrency=1, deadline_s=0.4, timeout_s=0.4)
        results, _ = judge_all(config, TEXTS[:6])  # 0.9 s in all
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:6]]
    with fake_judge(lambda response, call: "hang") as server:
        start = time.monotonic()
        (bad,), _ = judge_all(settings(server, deadline_s=0.5, timeout_s=0.2, retries=99), ["a"])
        assert 0.35 < time.monotonic() - start < 1.2
        assert {r.verdict for r in bad} == {V.UNVERIFIABLE} and "timeout" in bad[0].reason


def test_request_rate_is_kept() -> None:
    with fake_judge() as server:
        judge_all(settings(server, requests_per_minute=600), TEXTS[:6])
        assert server.at[-1] - server.at[0] > 0.35  # 5 gaps of 0.1 s; the first connects slowly
    with fake_judge() as server:  # about 900 tokens a call
        judge_all(settings(server, tokens_per_minute=200_000), TEXTS[:3])
        assert server.at[-1] - server.at[0] > 0.3


def test_request_rate_is_kept_after_a_pause() -> None:
    """Twenty calls wait for its end; they are not sent at once."""

    def script(response: str, call: int) -> str:
        return "500" if server.calls.total() <= 2 else "ok"

    with fake_judge(script) as server:
        config = settings(
            server, requests_per_minute=1200, concurrency=20, failure_window=4, retry_wait_s=0.8
        )
        results, stats = judge_all(config, TEXTS)
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS]
        assert stats["pauses"] == 1
        asked = [shown_response(request["messages"]) for request in server.requests]
        after = server.at[asked.index("Blue.") + 1 :]
        assert after[10] - after[0] > 0.3  # 10 gaps of 50 ms


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_refused_access_ends_it_at_once_without_naming_the_key(
    status: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-verysecret123")
    caplog.set_level(logging.DEBUG)
    with fake_judge(lambda response, call: status) as server:
        config = settings(server, api_key_env="TEST_JUDGE_KEY")
        with pytest.raises(JudgeError) as raised:
            judge_all(config, TEXTS[:1])
        with pytest.raises(ValueError) as refused:
            use(config, lambda client: client.preflight())
        assert server.calls.total() == 2  # never asked again
        assert {h["authorization"] for h in server.headers} == {"Bearer sk-verysecret123"}
    for text in (str(raised.value), str(refused.value)):
        assert server.url in text and "'m'" in text and f"HTTP {status}" in text
    assert "TEST_JUDGE_KEY" in str(refused.value)
    chain = "".join(map(repr, (raised.value.__cause__, refused.value.__cause__)))
    assert "verysecret" not in f"{raised.value}{refused.value}{caplog.text}{chain}"


@pytest.mark.parametrize("action", ["400", "500", "429"])
def test_a_key_echoed_by_the_server_is_in_no_reason_log_or_metric(
    action: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "sk-verysecret123")
    caplog.set_level(logging.DEBUG, logger="herl_megatron")
    with fake_judge(lambda r, call: action if r != "Blue." and call < 3 else "ok") as server:
        config = settings(
            server, api_key_env="TEST_JUDGE_KEY", failure_window=2, retries=1, max_pause_s=5,
            cache=str(tmp_path / "cache.sqlite"),
        )  # fmt: skip

        async def work(client: JudgeClient) -> str:
            results = await client.judge(make_prompt(), "a", make_prompt().rubric.criteria)
            return f"{results} {client.metrics()}"

        said = use(config, work)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "verysecret" not in said + caplog.text and b"verysecret" not in kept


def test_without_a_key_none_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    with fake_judge() as server:
        judge_all(settings(server), TEXTS[:1])
        assert [h["authorization"] for h in server.headers] == ["Bearer none"]


def test_cache_answers_over_processes_and_only_for_the_same_question(tmp_path: Path) -> None:
    file = str(tmp_path / "sub" / "cache.sqlite")
    with fake_judge() as server:
        first, _ = judge_all(settings(server, cache=file), TEXTS[:5])
        again, stats = judge_all(settings(server, cache=file), TEXTS[:6])
        assert [verdicts(r) for r in again] == [expected(t) for t in TEXTS[:6]]
        assert (stats["cache_hits"], stats["calls"]) == (5, 1)
        for change in ({"model": "other"}, {"temperature": 0.5}, {"canary": False}):
            _, stats = judge_all(settings(server, cache=file, **change), TEXTS[:1])
            assert (stats["cache_hits"], stats["calls"]) == (0, 1), change
        other = make_prompt([contains("river"), contains("bread")])
        _, stats = judge_all(settings(server, cache=file), TEXTS[:1], other)
        assert stats["cache_hits"] == 0
        renamed = make_prompt([Criterion(f"x{c.id}", "judge", description=c.description)
                               for c in make_prompt().rubric.criteria])  # fmt: skip
        (same,), stats = judge_all(settings(server, cache=file), TEXTS[:1], renamed)
        assert stats["cache_hits"] == 1 and same[0].criterion_id == "xriver"
        assert verdicts(same) == verdicts(first[0])


def test_failures_are_not_cached(tmp_path: Path) -> None:
    file = str(tmp_path / "cache.sqlite")
    with fake_judge(lambda r, call: "500" if call < 2 else "ok") as server:
        config = settings(server, cache=file, retries=1)
        (bad,), _ = judge_all(config, TEXTS[:1])
        (good,), stats = judge_all(config, TEXTS[:1])
    assert {r.verdict for r in bad} == {V.UNVERIFIABLE}
    assert verdicts(good) == expected(TEXTS[0]) and stats["cache_hits"] == 0


@pytest.mark.parametrize(
    "kept",
    ["null", "{}", "[]", "7", "garbage", "", '{"verdicts": null, "grade": null}', "[" * 5000,
     '{"verdicts": [true, false], "grade": null}', '{"verdicts": [1, 0, 1], "grade": null}',
     '{"verdicts": [true, true, true], "grade": 3}', '{"grade": 3}', b"\xff\xfe"],
)  # fmt: skip
def test_a_cache_entry_that_cannot_be_read_is_a_miss_and_mended(kept: Any, tmp_path: Path) -> None:
    """No value in it says so many verdicts as there are statements."""
    file = tmp_path / "cache.sqlite"
    with fake_judge() as server:
        config = settings(server, cache=str(file))
        judge_all(config, TEXTS[:2])
        with sqlite3.connect(file) as db:
            db.execute("UPDATE judgements SET value = ?", (kept,))
        for hits, calls in ((0, 2), (2, 0)):
            results, stats = judge_all(config, TEXTS[:2])
            assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:2]]
            assert (stats["cache_hits"], stats["calls"]) == (hits, calls)


@pytest.mark.parametrize("grade", ["null", "0", "6", "4.5", "true", '"4"', "NaN"])
def test_a_grade_in_the_cache_that_is_none_is_a_miss(grade: str, tmp_path: Path) -> None:
    """Of four words the fake judge says 4 of 5, which is what is kept in the end."""
    file, prompt = tmp_path / "cache.sqlite", make_prompt(aggregation="llmeval_med")
    with fake_judge() as server:
        config = settings(server, cache=str(file))
        judge_all(config, ["river bread and more"], prompt)
        with sqlite3.connect(file) as db:
            db.execute(
                "UPDATE judgements SET value = ?", (f'{{"verdicts": [], "grade": {grade}}}',)
            )
        (results,), stats = judge_all(config, ["river bread and more"], prompt)
    assert {r.grade for r in results} == {0.8} and stats["calls"] == 1


def test_cache_is_shared_by_processes_that_write_at_the_same_time(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite"
    code = """
import asyncio, sys
from pathlib import Path
from herl_megatron.rubrics.cache import JudgementCache
async def main():
    cache = JudgementCache(Path(sys.argv[1]))
    for i in range(200):
        await cache.put(f"k{i}", f"{i}")
    assert [await cache.get(f"k{i}") for i in range(200)] == [f"{i}" for i in range(200)]
    cache.close()
asyncio.run(main())
"""
    root = Path(__file__).parents[3]
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=root) for _ in range(3)]
    assert [job.wait(timeout=HANG_S) for job in jobs] == [0, 0, 0]
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT count(*) FROM judgements").fetchone() == (200,)


def test_outage_pauses_everything_and_the_results_are_those_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    down = {"from": 8, "until": 0.0}

    def script(response: str, call: int) -> str:
        if server.calls.total() == down["from"]:
            down["until"] = time.monotonic() + 0.7
        return "500" if time.monotonic() < down["until"] else "ok"

    async def work(client: JudgeClient) -> tuple[Any, dict[str, float]]:
        prompt = make_prompt()
        calls = (client.judge(prompt, text, prompt.rubric.criteria) for text in TEXTS)
        return await asyncio.gather(*calls), client.metrics()

    with fake_judge(script) as server:
        config = settings(
            server, concurrency=3, failure_window=4, retries=2, max_pause_s=20, retry_wait_s=0.05
        )
        caplog.set_level(logging.INFO, logger="herl_megatron")
        results, metrics = use(config, work)
        answered = server.calls.copy()
    assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS]
    assert metrics["judge/unjudged"] == 0 and metrics["judge/judged"] == 20
    assert metrics["judge/pauses"] == 1 and 0.3 < metrics["judge/paused_s"] < 3
    assert answered.total() == metrics["judge/calls"]
    # In the pause nobody but the probe asks.
    assert answered.total() - answered["Blue."] <= 20 + 3 * 3
    (began,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "scoring pauses since" in began and "HTTP 500" in began and "max_pause_s" in began
    assert any("the judge is back" in r.getMessage() for r in caplog.records)


def test_judge_that_stays_away_ends_it_with_the_reason() -> None:
    with fake_judge(lambda response, call: "reset") as server:
        config = settings(server, failure_window=4, max_pause_s=0.4)
        start = time.monotonic()
        with pytest.raises(
            JudgeError, match=r"did not answer for 0.4 s .*max_pause_s.*transport|no"
        ):
            judge_all(config, TEXTS[:5])
        assert 0.35 < time.monotonic() - start < 3


def test_key_that_is_revoked_during_a_pause_ends_it() -> None:
    with fake_judge(lambda r, call: "401" if r == "Blue." else "500") as server:
        config = settings(server, failure_window=4, max_pause_s=60)
        with pytest.raises(JudgeError, match="refuses access: .*HTTP 401"):
            judge_all(config, TEXTS[:5])


def test_a_poisonous_response_does_not_pause_forever() -> None:
    """One response that the judge always crashes on: the others are scored, it is not."""

    def script(response: str, call: int) -> str:
        return "500" if response == "poison" else "ok"

    with fake_judge(script) as server:
        config = settings(server, failure_window=4, retries=5, max_pause_s=60)
        results, stats = judge_all(config, ["poison", *TEXTS[:3]])
    assert [verdicts(r) for r in results[1:]] == [expected(t) for t in TEXTS[:3]]
    assert {r.verdict for r in results[0]} == {V.UNVERIFIABLE}
    assert stats["pauses"] <= 12  # 4 starts of 6 attempts, two failures to a pause


@pytest.mark.parametrize("fault", ["wrong_json", "cut"])
def test_answers_in_vain_are_not_asked_for_again_after_each_pause(fault: str) -> None:
    """Every answer is unreadable, the probe's excepted: pauses begin and end, but each response
    costs the calls that `retries` allow and no more."""
    with fake_judge(lambda r, call: "ok" if r == "Blue." else fault) as server:
        config = settings(server, failure_window=4, retries=2, max_pause_s=60)
        results, stats = judge_all(config, TEXTS[:8])
        asked = {text: count for text, count in server.calls.items() if text != "Blue."}
    assert stats["pauses"] >= 1
    assert asked == dict.fromkeys(TEXTS[:8], 3)
    assert {r.verdict for result in results for r in result} == {V.UNVERIFIABLE}
    assert all("invalid: " in r.reason for result in results for r in result)


def test_several_addresses_take_turns_and_a_dead_one_is_passed_by() -> None:
    with fake_judge() as one, fake_judge() as other, fake_judge() as gone:
        both = settings(one, base_url=f"{one.url}, {other.url}", concurrency=1)
        judge_all(both, TEXTS[:10])
        assert (one.calls.total(), other.calls.total()) == (5, 5)
        gone.close()
        results, stats = judge_all(
            settings(one, base_url=f"{gone.url},{one.url}", concurrency=1), TEXTS[:10]
        )
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:10]]
        assert stats["failures_transport"] == 1  # then it comes last
        config = settings(one, base_url=f"{gone.url},{one.url}", retries=2)
        with pytest.raises(ValueError, match="does not work: no connection"):
            use(config, lambda client: client.preflight())  # retries go to the same address


def test_an_address_that_fails_does_not_pause_what_another_can_do() -> None:
    with fake_judge() as well, fake_judge(lambda response, call: "503") as sick:
        config = settings(well, base_url=f"{sick.url},{well.url}", concurrency=1, failure_window=4)
        results, stats = judge_all(config, TEXTS)
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS]
        assert (stats["failures_server"], stats["pauses"]) == (1, 0)


def test_metrics_are_new_since_the_last_call_and_cost_what_the_prices_say() -> None:
    async def work(client: JudgeClient) -> list[dict[str, float]]:
        prompt = make_prompt()
        found = []
        for texts in (TEXTS[:3], TEXTS[:1], ()):
            for text in texts:
                await client.judge(prompt, text, prompt.rubric.criteria)
            found.append(client.metrics())
        return found

    with fake_judge() as server:
        first, second, third = use(settings(server, price_in=2.0, price_out=8.0), work)
    # 3 calls of 100 tokens in and 10 out; without a cache the fourth is asked too.
    assert first["judge/cost"] == pytest.approx(3 * (100 * 2 + 10 * 8) / 1e6)
    assert (first["judge/calls"], second["judge/calls"], third["judge/calls"]) == (3, 1, 0)
    assert 0 < first["judge/latency_p50_s"] <= first["judge/latency_p95_s"] < 1
    assert "judge/latency_p50_s" not in third and third["judge/cost"] == 0


def test_who_stops_waiting_does_not_stop_the_others() -> None:
    async def work(client: JudgeClient) -> list[CriterionResult]:
        prompt = make_prompt()
        calls = [
            asyncio.create_task(client.judge(prompt, TEXTS[0], prompt.rubric.criteria))
            for _ in range(2)
        ]
        await asyncio.sleep(0.1)
        calls[0].cancel()
        return await calls[1]

    with fake_judge(lambda response, call: "slow:0.3") as server:
        assert verdicts(use(settings(server), work)) == expected(TEXTS[0])
        assert server.calls.total() == 1


@pytest.mark.parametrize(
    ("aggregation", "params", "calls", "grades"),
    [
        ("healthbench", {}, 3, [None] * 3),
        ("writingbench", {"bands": {"1-2": "none", "9-10": "all"}}, 3, [0.4] * 3),
        ("implicit", {}, 1, [0.4] * 3),
        ("llmeval_med", {}, 1, [0.8] * 3),
    ],
)
def test_formats(aggregation: Aggregation, params: Any, calls: int, grades: list[Any]) -> None:
    """A response of four words: 4 of 10 or 4 of 5 by the fake judge's grading."""
    criteria = [replace(contains(word), params=params) for word in WORDS]
    text = "river bread and more"
    with fake_judge() as server:
        (results,), _ = judge_all(settings(server), [text], make_prompt(criteria, aggregation))
        assert server.calls == {text: calls}
    assert [r.grade for r in results] == grades
    if aggregation == "healthbench":
        assert verdicts(results) == expected(text)


def test_request_carries_what_the_configuration_says() -> None:
    with fake_judge() as server:
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        judge_all(settings(server, extra_body=extra, max_tokens=77, temperature=None), TEXTS[:1])
        (request,) = server.requests
    assert request["chat_template_kwargs"] == {"enable_thinking": False}
    assert request["max_completion_tokens"] == 77 and "temperature" not in request
    assert request["model"] == "m" and request["response_format"]["json_schema"]["strict"] is True


def test_own_prompt_is_checked_at_the_start_and_used(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    with fake_judge() as server:
        for text, problem in (
            ("Judge {response}.", "{statements} is missing"),
            ("{response} {statements} {rubric}", "{rubric} is no placeholder"),
            ("{response} {statements} {response.__class__}", "is no placeholder"),
            ("{response} {statements} {", "written as|write a brace"),
        ):
            file.write_text(text)
            with pytest.raises(ValueError, match=f"judge.prompt .*({problem})"):
                use(settings(server, prompt=str(file)), lambda client: client.preflight())
        assert server.calls.total() == 0
        file.write_text('Format {{"a"}}. My question:\n{response}\nMy list:\n{statements}')
        text = "river {statements} {0}"  # braces of a response are only text
        (results,), _ = judge_all(settings(server, prompt=str(file)), [text])
        assert verdicts(results) == [V.FOLLOWED, V.NOT_FOLLOWED, V.NOT_FOLLOWED]
        assert server.requests[-1]["messages"][1]["content"].startswith(
            'Format {"a"}. My question:'
        )


def test_honest_model_is_what_the_tests_think_it_is() -> None:
    messages = [
        {"role": "system", "content": "with the mark 0123456789abcdef. x"},
        {"role": "user", "content": "===== begin response 0123456789abcdef\na river\n"
         "===== end response 0123456789abcdef\n"
         's1: The response contains the word "river".\n'
         "s2: The response contains this text: a lake"},
    ]  # fmt: skip
    boolean = {"type": "boolean"}
    assert honest(messages, {"properties": {"s1": boolean, "s2": boolean}}) == {
        "s1": True,
        "s2": False,
    }
