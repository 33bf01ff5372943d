"""Bodies of HTTP 200 read for what they are: an answer, an error by its code, or nothing usable."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.rubrics.error_replies import describe_body, find_error, seconds
from herl_megatron.rubrics.failures import CallFailed, ErrorReply, JudgeError
from herl_megatron.rubrics.replies import read_reply
from herl_megatron.types import Verdict as V
from tests.fake_judge import changed, completion, fake_judge
from tests.unit.rubrics.client_cases import (
    TEXTS,
    expected,
    judge_all,
    make_prompt,
    settings,
    use,
    verdicts,
)

GOOD = completion('{"s1": true}')


def read(body: str | bytes) -> Any:
    return read_reply(body if isinstance(body, bytes) else body.encode(), lambda words: words[:300])


def with_message(**fields: Any) -> str:
    return changed(GOOD, "message", fields)


ERRORS = [
    ({"error": {"message": "slow", "code": 429}}, 429, "slow"),
    ({"error": {"message": "slow", "code": "429"}}, 429, "slow"),
    ({"error": {"message": "slow", "status": 429.0}}, 429, "slow"),
    ({"error": {"message": "slow", "type": "rate_limit_error", "code": None}}, 429, "slow"),
    ({"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED"}}, 429, "slow"),
    ({"error": {"message": "slow", "status": "RESOURCE_EXHAUSTED"}}, 429, "slow"),
    ([{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}], 503, "busy"),
    ({"error": "busy", "code": 503}, 503, "busy"),
    ({"error": "busy", "status": "503"}, 503, "busy"),
    ({"error": "503 Service Unavailable"}, 503, "503 Service Unavailable"),
    ({"error": "upstream said: HTTP 502"}, 502, "upstream said: HTTP 502"),
    ({"error": "Error code: 429 - slow"}, 429, "Error code: 429 - slow"),
    ({"error": "overloaded", "message": "try later"}, 503, "try later"),
    ({"object": "error", "message": "no model x", "type": "NotFoundError", "code": 404}, 404,
     "no model x"),
    ({"object": "error", "message": "too long", "type": "BadRequestError", "param": None,
      "code": 40303}, 400, "too long"),
    ({"detail": "Not authenticated", "status_code": 401}, 401, "Not authenticated"),
    ({"detail": "Internal Server Error", "code": "500"}, 500, "Internal Server Error"),
    ({"detail": [{"loc": ["body", "seed"], "msg": "bad", "type": "value_error"}]}, 0, "bad"),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 503, "busy"),
    ({"error": {"message": "who?", "type": "invalid_request_error", "code": "invalid_api_key"}},
     401, "who?"),
    ({"error": {"message": "no", "code": "model_not_found"}}, 404, "no"),
    ({"error": {"message": "no", "code": "PERMISSION_DENIED"}}, 403, "no"),
    ({"error": {"message": "odd", "code": 7}}, 0, "odd"),
    ({"error": {"message": "odd"}, "choices": []}, 0, "odd"),
    ({"error": {"message": "odd", "code": True}}, 0, "odd"),
    ({"code": 500, "msg": "down", "data": None}, 500, "down"),
    ({"fault": {"faultstring": "quota gone", "detail": {"errorcode": "x"}}, "status": 429}, 429,
     "quota gone"),
    ({"choices": [{"error": {"code": 502, "message": "cut off"}, "finish_reason": "error",
                   "message": {"content": "{"}}]}, 502, "cut off"),
    ({"error": True, "message": "slow", "statusCode": 429}, 429, "slow"),
    ({"error": 429, "message": "slow"}, 429, "slow"),
    ({"errorCode": "503", "errorMessage": "busy"}, 503, "busy"),
    ({"success": False, "errors": [{"code": 10000, "message": "Auth"}]}, 0, "Auth"),
    ({"message": "gateway is asleep"}, 0, "gateway is asleep"),
    ({"error": {"message": {"text": "deep", "message": "deeper"}, "code": 500}}, 500, None),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "said"), ERRORS)
def test_an_error_in_a_200_has_the_status_that_it_names(
    body: Any, status: int, said: str | None
) -> None:
    with pytest.raises(ErrorReply) as raised:
        read(json.dumps(body))
    assert raised.value.status == status
    assert said is None or raised.value.said == said


@pytest.mark.parametrize(
    "code",
    [
        "content_filter",
        "content_policy_violation",
        "ResponsibleAIPolicyViolation",
        "data_inspection_failed",
    ],
)
def test_an_error_about_the_text_is_a_refusal_of_the_text(code: str) -> None:
    error = find_error({"error": {"message": "flagged", "code": code}})
    assert error is not None and error.status == 400 and error.about_text
    assert not describe_body('{"error": {"message": "who?", "code": 401}}').about_text


def test_what_is_no_error_is_none() -> None:
    none: tuple[dict[str, Any], ...] = (
        {"error": None}, {"error": {}}, {"error": ""}, {"code": 0, "message": "success"},
        {"error": {"code": 0, "message": ""}},
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"errors": []}, {"detail": None},
    )  # fmt: skip
    for fine in none:
        assert read(changed(GOOD, "top", fine)).text == '{"s1": true}', fine


@pytest.mark.parametrize(
    ("holder", "wait_s"),
    [
        ({"retry_after": 7}, 7),
        ({"metadata": {"headers": {"Retry-After": "7"}}}, 7),
        ({"details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}, 34),
        ({"retry-after-ms": 250}, 0.25),
        ({"retry_after_seconds": -1}, 0),
        ({"retry_after": "soon"}, 0),
        ({"retry_after": None}, 0),
    ],
)
def test_the_wait_that_an_error_asks_for(holder: Any, wait_s: float) -> None:
    error = find_error({"error": {"message": "slow", "code": 429} | holder})
    assert error is not None and error.retry_after_s == wait_s


def test_seconds() -> None:
    assert seconds("1.5") == seconds(1.5) == 1.5 and seconds("3s") == 3
    assert 8 < seconds(formatdate(time.time() + 10, usegmt=True)) <= 10
    none: tuple[Any, ...] = (
        "", "x", True, None, [], float("nan"), float("inf"), "9" * 400, -2, "-2",
    )  # fmt: skip
    for nothing in none:
        assert seconds(nothing) == 0


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (0, 0)),
        ([], (0, 0)),
        ("x", (0, 0)),
        ({}, (0, 0)),
        ({"prompt_tokens": None, "completion_tokens": 5}, (0, 5)),
        ({"prompt_tokens": "12", "completion_tokens": 5.0}, (12, 5)),
        ({"prompt_tokens": -3, "completion_tokens": 1e400}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": {"text": 3}}, (0, 0)),
        ({"prompt_tokens": float("nan"), "completion_tokens": 10**30}, (0, 0)),
    ],
)
def test_usage_that_cannot_be_read_voids_no_answer(usage: Any, tokens: tuple[int, int]) -> None:
    reply = read(changed(GOOD, "top", {"usage": usage}))
    assert (reply.text, reply.tokens) == ('{"s1": true}', tokens)


def test_a_number_of_thousands_of_digits_voids_no_answer() -> None:
    """Python itself reads integers of up to 4,300 digits."""
    body = changed(GOOD, "top", {"usage": {"prompt_tokens": "N", "completion_tokens": 5}})
    reply = read(body.replace('"N"', "9" * 5_000))
    assert (reply.text, reply.tokens) == ('{"s1": true}', (0, 5))


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": '{"s1": true}'}],
        ['{"s1"', ": true}"],
        {"type": "text", "text": '{"s1": true}'},
        [{"type": "output_text", "text": '{"s1": '}, {"text": "true}"}],
        [
            {"type": "thinking", "thinking": [{"text": "{}"}]},
            {"type": "text", "text": {"value": '{"s1": true}'}},
        ],
        [
            {"type": "text", "text": "hm {", "thought": True},
            {"type": "text", "text": '{"s1": true}'},
        ],
    ],
)
def test_parts_of_text_are_joined(content: Any) -> None:
    assert read(with_message(content=content)).text == '{"s1": true}'


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (
            with_message(content=[{"type": "image_url", "image_url": {}}]),
            "invalid",
            "no text: image_url",
        ),
        (
            with_message(content=[{"type": "text", "text": '{"s1": true}'}, 7]),
            "invalid",
            "a number",
        ),
        (with_message(content=[{"type": "text", "text": None}]), "invalid", "holds null"),
        (with_message(content={"s1": True}), "invalid", "holds null"),
        (with_message(content=7), "invalid", "a number"),
        (with_message(content=None), "invalid", "an empty answer: finish_reason stop"),
        (with_message(content=" \n"), "invalid", "an empty answer"),
        (with_message(content=[]), "invalid", "an empty answer"),
        (
            with_message(content=None, reasoning_content="abcde"),
            "invalid",
            r"reasoning_content of 5 characters.*max_tokens.*extra_body.*enable_thinking",
        ),
        (with_message(content="", reasoning="abc"), "invalid", "reasoning of 3 characters"),
        (with_message(content=None, tool_calls=[{}, {}]), "invalid", r"tool_calls \(2\).*tools"),
        (
            changed(
                with_message(content=None, reasoning="abc"), "choice", {"finish_reason": "length"}
            ),
            "invalid",
            "reasoning of 3 characters: finish_reason length .*max_tokens",
        ),
        (changed(GOOD, "choice", {"finish_reason": "length"}), "invalid", "cut .*judge.max_tokens"),
        (changed(GOOD, "choice", {"finish_reason": "MAX_TOKENS"}), "invalid", "cut"),
        (changed(GOOD, "choice", {"finish_reason": "abort"}), "server", "broke off .*abort"),
        (changed(GOOD, "choice", {"finish_reason": "error"}), "server", "broke off"),
        (with_message(refusal="I will not"), "refused", "refuses to judge it: I will not"),
        (with_message(content=None, refusal="no"), "refused", "refuses to judge it: no"),
        (with_message(content=[{"type": "refusal", "refusal": "no"}]), "refused", ": no"),
        (changed(GOOD, "choice", {"finish_reason": "content_filter"}), "refused", "content filter"),
        (changed(GOOD, "choice", {"finish_reason": "SAFETY"}), "refused", "SAFETY"),
        ("", "invalid", "body is empty"),
        (b"\xff\xfe{", "invalid", "not UTF-8"),
        ("null", "invalid", "but null"),
        ("[]", "invalid", "but a list"),
        ("7", "invalid", "a number"),
        ('"sorry"', "invalid", "but a text: sorry"),
        ("{}", "invalid", "no choices"),
        ('{"id": 1, "output": []}', "invalid", "fields: id, output"),
        ('{"choices": []}', "invalid", "without choices"),
        ('{"choices": {}}', "invalid", "no choices"),
        ('{"choices": [7]}', "invalid", "no choices"),
        ('{"choices": [{}]}', "invalid", "no message"),
        ('{"choices": [{"message": null}]}', "invalid", "no message"),
        ('{"choices": [{"text": "{}"}]}', "invalid", "text completion; judge.base_url"),
        ('{"choices": [{"delta": {"content": "{}"}}]}', "invalid", "piece of a stream"),
        (GOOD[:-5], "invalid", "ends or breaks"),
        ("[" * 100_000, "invalid", "not a chat|no JSON"),
        (f"{GOOD}{GOOD}", "invalid", "more characters after its end"),
        (f"{GOOD} ok", "invalid", "3|2 more characters"),
        (f"data: {GOOD}\n\ndata: [DONE]\n", "invalid", "stream of events .*extra_body"),
        (f"event: message\ndata: {GOOD}", "invalid", "stream of events"),
        (": still working\n\n" + GOOD, "invalid", "stream of events"),
        ("<html><head><title>Sign in</title></head></html>", "invalid", "HTML: +Sign in"),
        ("Too many requests", "invalid", "no JSON: Too many requests"),
    ],
)
def test_what_is_no_answer_is_named(body: str | bytes, kind: str, words: str) -> None:
    with pytest.raises(CallFailed, match=words) as raised:
        read(body)
    assert raised.value.kind == kind and len(str(raised.value)) < 2000


def test_white_space_and_a_byte_order_mark_are_nothing() -> None:
    assert read(b"\xef\xbb\xbf \n\n" + GOOD.encode() + b"\n \n").text == '{"s1": true}'


def test_an_error_within_a_stream_is_that_error() -> None:
    with pytest.raises(ErrorReply) as raised:
        read('data: {"error": {"message": "slow\u2028", "code": 429}}\n\ndata: [DONE]\n')
    assert raised.value.status == 429


def error_body(code: Any) -> str:
    return "body:" + json.dumps({"error": {"message": "words of the server", "code": code}})


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (error_body(429), "rate_limit"),
        (error_body("503"), "server"),
        (error_body(None), "invalid"),
        ("stream", "invalid"),
        ("twice", "invalid"),
        ('message:{"content": null}', "invalid"),
        ('choice:{"finish_reason": "abort"}', "server"),
    ],
)
def test_a_broken_200_costs_one_more_call_and_no_verdict(fault: str, kind: str) -> None:
    with fake_judge(lambda response, call: "ok" if call else fault) as server:
        results, stats = judge_all(settings(server), TEXTS[:3])
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:3]]
        assert set(server.calls.values()) == {2}
    assert stats[f"failures_{kind}"] == 3


@pytest.mark.parametrize(
    "good", ["parts", 'top:{"usage": {"prompt_tokens": null}}', 'top:{"usage": 7, "error": null}']
)
def test_an_answer_that_can_be_read_costs_one_call(good: str) -> None:
    with fake_judge(lambda response, call: good) as server:
        results, stats = judge_all(settings(server), TEXTS[:3])
        assert [verdicts(r) for r in results] == [expected(t) for t in TEXTS[:3]]
        assert set(server.calls.values()) == {1}
    assert stats["judged"] == 3


@pytest.mark.parametrize(
    "fault",
    [
        'message:{"refusal": "I cannot help with that"}',
        'choice:{"finish_reason": "content_filter"}',
        error_body("content_filter"),
        error_body(400),
    ],
)
def test_a_refusal_in_a_200_is_not_asked_again(fault: str) -> None:
    """The refused one's answer was whole and true: it is no verdict all the same."""
    with fake_judge(lambda r, call: fault if r == TEXTS[0] else "ok") as server:
        (bad, good), stats = judge_all(settings(server), TEXTS[:2])
        assert server.calls == {TEXTS[0]: 1, TEXTS[1]: 1}
    assert verdicts(bad) == [V.UNVERIFIABLE] * 3 and bad[0].reason.startswith("judge: refused: ")
    assert verdicts(good) == expected(TEXTS[1]) and stats["failures_refused"] == 1


def test_a_429_in_a_200_waits_as_its_header_says() -> None:
    wait = "body-0.6:" + error_body(429).removeprefix("body:")
    with fake_judge(lambda r, call: wait if r == TEXTS[0] and call == 0 else "ok") as server:
        judge_all(settings(server, concurrency=1, timeout_s=2), TEXTS[:2])
        gaps = [b - a for a, b in zip(server.at, server.at[1:], strict=False)]
    assert gaps[0] >= 0.58


def test_a_401_in_a_200_is_a_401() -> None:
    """An error for all at preflight, one response's after an answer; a probe decides there too."""
    with fake_judge(lambda response, call: error_body(401)) as server:
        with pytest.raises(ValueError, match="refuses access: .*status 401.*words of the server"):
            use(settings(server), lambda client: client.preflight())

    async def work(client: JudgeClient) -> Any:
        prompt = make_prompt()
        await client.preflight()
        return [await client.judge(prompt, text, prompt.rubric.criteria) for text in TEXTS[:3]]

    with fake_judge(lambda r, call: error_body(401) if r == TEXTS[1] else "ok") as server:
        first, bad, last = use(settings(server), work)
        assert verdicts(first) == expected(TEXTS[0]) and verdicts(last) == expected(TEXTS[2])
        assert verdicts(bad) == [V.UNVERIFIABLE] * 3
        assert server.calls["Blue."] == 2
    with fake_judge(
        lambda r, call: error_body(401) if server.calls.total() > 2 else "ok"
    ) as server:
        with pytest.raises(JudgeError, match="a probe as well"):
            use(settings(server), work)
