"""The judge's client with servers that know less than the newest: fields, headers, formats."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.types import Verdict as V
from tests.fake_judge import asked_statements, fake_judge, honest, shown_response
from tests.unit.rubrics.client_cases import (
    TEXTS,
    expected,
    judge_all,
    make_prompt,
    settings,
    verdicts,
)


def in_turn(*truths: bool) -> Any:
    """A model whose n-th answer says of every statement but the canaries what it is told."""
    left = list(truths)

    def model(messages: list[dict[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
        said, answer = left.pop(0), honest(messages, schema)
        for key, statement in asked_statements(messages).items():
            if statement == 'The response contains the word "river".':
                answer[key] = said
        return answer

    return model


@pytest.mark.parametrize(
    ("told", "verdict"),
    [((True, False, True), V.FOLLOWED), ((False, True, False), V.NOT_FOLLOWED)],
)
def test_of_several_judgements_the_majority_counts(told: tuple[bool, ...], verdict: V) -> None:
    with fake_judge(model=in_turn(*told)) as server:
        config = settings(server, samples=3, concurrency=1, evidence=False)
        (results,), stats = judge_all(config, ["bread"])
        assert verdicts(results) == [verdict, V.NOT_FOLLOWED, V.FOLLOWED]
        assert [request["seed"] for request in server.requests] == [0, 1000, 2000]
        assert len({str(request["messages"]) for request in server.requests}) == 3
    assert stats["calls"] == stats["judged"] == 3


@pytest.mark.parametrize(
    ("grades", "verdict"), [((5, 4, 3), V.FOLLOWED), ((5, 3, 3), V.NOT_FOLLOWED)]
)
def test_of_several_grades_the_mean_counts(grades: tuple[int, ...], verdict: V) -> None:
    """LLMEval-Med: usable is a mean of 4 of 5 over three runs."""
    left = list(grades)

    def model(messages: list[dict[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
        return honest(messages, schema) | {"grade": left.pop(0)}

    with fake_judge(model=model) as server:
        prompt = make_prompt(aggregation="llmeval_med")
        config = settings(server, samples=3, concurrency=1)
        (results,), _ = judge_all(config, ["river"], prompt)
    assert {r.grade for r in results} == {sum(grades) / 15}
    assert {r.verdict for r in results} == {verdict}


def test_a_judgement_that_fails_among_several_leaves_no_verdict(tmp_path: Path) -> None:
    """The others are kept: when it is asked again, they cost nothing."""
    broken = {"is": True}

    def script(response: str, call: int) -> str:
        return "400" if call == 1 and broken["is"] else "ok"

    with fake_judge(script) as server:
        config = settings(server, samples=3, concurrency=1, cache=str(tmp_path / "cache"))
        (bad,), _ = judge_all(config, ["river"])
        assert verdicts(bad) == [V.UNVERIFIABLE] * 3 and "HTTP 400" in bad[0].reason
        broken["is"] = False
        (good,), stats = judge_all(config, ["river"])
        assert verdicts(good) == expected("river")
    assert (stats["calls"], stats["cache_hits"]) == (1, 2)


@pytest.mark.parametrize("unknown", ["seed", "max_completion_tokens", "seed,max_completion_tokens"])
def test_a_server_that_lacks_a_field_is_asked_without_it(
    unknown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Learnt once: the first call is sent anew, the later ones go without at once."""
    fields = set(unknown.split(","))
    with fake_judge(lambda response, call: f"lacks:{unknown}") as server:
        results, stats = judge_all(settings(server, concurrency=1, max_tokens=777), TEXTS[:4])
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:4]]
        assert server.calls.total() == 4 + len(fields)
        for request in server.requests[len(fields) :]:
            assert not fields & request.keys()
            limit = "max_tokens" if "max_completion_tokens" in fields else "max_completion_tokens"
            assert request[limit] == 777
    assert stats["calls"] == 4 and stats["retries"] == 0
    warned = [r.getMessage() for r in caplog.records if "does not take" in r.getMessage()]
    assert len(warned) == 1 and all(field in warned[0] for field in fields)


def test_a_refusal_that_only_names_a_field_changes_no_other_request() -> None:
    """One long response must not take the field from all that follow, which may be refused then."""

    def script(response: str, call: int) -> str:
        return "says:max_completion_tokens is too large: 777" if response == "long" else "ok"

    with fake_judge(script) as server:
        (bad, good), _ = judge_all(
            settings(server, concurrency=1, max_tokens=777), ["long", "river"]
        )
        assert server.calls == {"long": 2, "river": 1}
        assert server.requests[-1]["max_completion_tokens"] == 777
    assert "max_completion_tokens is too large" in bad[0].reason
    assert verdicts(good) == expected("river")


def test_a_server_that_lacks_a_field_that_it_needs_is_told_of() -> None:
    """Left to the configuration, where `temperature: null` and `structured` are."""
    with fake_judge(lambda response, call: "lacks:temperature") as server:
        (bad,), _ = judge_all(settings(server), ["a"])
        assert server.calls.total() == 1
    assert "Unrecognized request argument: temperature" in bad[0].reason


def test_retry_after_may_be_a_date() -> None:
    """Whole seconds: two of them are more than one and at most two."""

    def script(response: str, call: int) -> str:
        if call:
            return "ok"
        return "429:" + formatdate(time.time() + 2, usegmt=True)

    with fake_judge(script) as server:
        (result,), _ = judge_all(settings(server, timeout_s=10), TEXTS[:1])
        assert verdicts(result) == expected(TEXTS[0])
        assert 0.95 < server.at[1] - server.at[0] < 4


@pytest.mark.parametrize("past", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-3"])
def test_retry_after_that_says_nothing_is_no_wait(past: str) -> None:
    with fake_judge(lambda r, call: f"429:{past}" if call == 0 else "ok") as server:
        (result,), _ = judge_all(settings(server, timeout_s=10), TEXTS[:1])
        assert verdicts(result) == expected(TEXTS[0])
        assert server.at[1] - server.at[0] < 5


@pytest.mark.parametrize(
    ("structured", "sent"), [("json_object", {"type": "json_object"}), ("none", None)]
)
def test_answers_without_a_schema_at_the_server_are_checked_all_the_same(
    structured: str, sent: dict[str, str] | None
) -> None:
    """The model learns the keys from the messages; what it leaves out is asked again."""
    left_out: list[object] = []

    def model(messages: list[dict[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
        assert not schema
        statements = asked_statements(messages)
        kinds = {key: {"type": "boolean"} for key in statements}
        answer = honest(messages, {"properties": kinds})
        if shown_response(messages) == TEXTS[1] and not left_out:
            left_out.append(answer.popitem())
        return answer

    with fake_judge(model=model) as server:
        config = settings(server, structured=structured, evidence=False)
        results, _ = judge_all(config, TEXTS[:3])
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:3]]
        assert server.calls[TEXTS[0]] == server.calls[TEXTS[2]] == 1
        assert server.calls[TEXTS[1]] == 2
        assert all(request.get("response_format") == sent for request in server.requests)
