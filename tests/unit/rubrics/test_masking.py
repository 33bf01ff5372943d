"""Nothing that resembles a key is shown; the rest of the server's words is."""

from __future__ import annotations

import base64
import json
import logging
import random
import string
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from herl_megatron.rubrics.client import JudgeClient
from herl_megatron.rubrics.failures import JudgeError
from herl_megatron.rubrics.masking import MASK, Masker
from tests.fake_judge import fake_judge
from tests.unit.rubrics.client_cases import judge_all, make_prompt, settings, use

KEY = "sk-Qm7xT2vLp9-ZwR4dYk8hJb3N"
ALPHABETS = (
    string.ascii_letters + string.digits,
    "0123456789abcdef",
    string.ascii_lowercase + "-_",
    string.ascii_letters + "+/=",
)
MODEL = "Acme/Judge-v2-70B-Instruct"


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum()).lower()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ECHOES = {
    "whole": KEY,
    "bearer": f"Bearer {KEY}",
    "quoted": f"'{KEY}'.",
    "starred": f"{KEY[:5]}{'*' * 14}{KEY[-4:]}",
    "starred end": f"{KEY[:7]}{'*' * 10}",
    "starred begin": f"{'*' * 10}{KEY[-3:]}",
    "bullets": f"{KEY[:4]}\u2022\u2022\u2022\u2022{KEY[-4:]}",
    "dots": f"{KEY[:6]}...{KEY[-4:]}",
    "ellipsis": f"{KEY[:6]}\u2026{KEY[-4:]}",
    "crosses": f"{KEY[:6]}XXXXXXXXXX{KEY[-4:]}",
    "first half": KEY[:13],
    "last six": KEY[-6:],
    "last four": f"ending in {KEY[-4:]}",
    "first four": f"it begins with {KEY[:4]}, which",
    "middle": f"<{KEY[8:16]}>",
    "upper": KEY.upper(),
    "lower": KEY.lower(),
    "broken": f"{KEY[:9]}\n   {KEY[9:]}",
    "broken twice": f"{KEY[:9]}\\\n{KEY[9:18]}\t{KEY[18:]}",
    "spelled": " ".join(KEY),
    "dashed": "-".join(KEY),
    "url": quote(f"key={KEY}/+", safe=""),
    "every byte as in urls": "".join(f"%{ord(c):02x}" for c in KEY),
    "twice as in urls": "".join(f"%25{ord(c):02X}" for c in KEY),
    "html": "".join(f"&#{ord(c)};" for c in KEY),
    "json": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "base64": b64(KEY),
    "basic": f"Basic {b64('user:' + KEY)}",
    "base64 of a header": b64(f"Bearer {KEY}"),
    "hex": KEY.encode().hex(),
    "backwards": KEY[::-1],
    "full width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in KEY),
    "in an address": f"https://gate.example/v1?api_key={KEY}&user=1",
    "in json": json.dumps({"headers": {"Authorization": f"Bearer {KEY}"}}),
    "in a name": f"user_{KEY[5:13]}_x",
}


@pytest.mark.parametrize("name", ECHOES)
def test_our_key_in_every_form(name: str) -> None:
    echo = ECHOES[name]
    shown = Masker(KEY, known=(MODEL,))(f"Incorrect value given ({echo}), please renew it")
    assert MASK in shown
    assert shown.startswith("Incorrect value given") and shown.endswith("please renew it")
    plain, key = letters(shown.replace(MASK, " ")), letters(KEY)
    for n, whole in ((4, key), (4, key[::-1]), (6, letters(b64(KEY))), (6, KEY.encode().hex())):
        assert not any(whole[i : i + n] in plain for i in range(len(whole) - n + 1)), shown


@pytest.mark.parametrize(
    "other",
    ["sk-proj-77Hg_k2", "gsk_9Gh2kLm0", "hf_aBcDeFgHiJ", "AIzaSyD3mo12345", "AKIAIOSFODNN7EXAMPLE",
     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
     "6f1c2b9e-03aa-4c1d-9be1-1f7c2a55d0e3", "dGhpcyBpcyBhIHNlY3JldCBrZXkgMTIz",
     "q8Wn3Zr5Tt1Yu7Vb", "ab12***yz89", "abcd...wxyz", "xoxb-1234-abcd"],
)  # fmt: skip
@pytest.mark.parametrize("key", [KEY, ""])
def test_keys_of_others(key: str, other: str) -> None:
    shown = Masker(key)(f"the account of {other} has no credit")
    assert shown == f"the account of {MASK} has no credit"


@pytest.mark.parametrize(
    "called", ["Authorization: Bearer t0psecret", "api_key=hunter22", '"password": "abc123xyz"']
)
def test_what_is_called_a_key(called: str) -> None:
    shown = Masker("")(f"got {called}")
    assert MASK in shown and not any(s in shown for s in ("t0p", "hunter", "abc123"))


@pytest.mark.parametrize(
    "words",
    ["The model `meta-llama/Llama-3.3-70B-Instruct` does not exist.",
     f"The model {MODEL} does not exist",
     "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
     "max_completion_tokens is too large: 777",
     "Rate limit reached for requests; try again in 1.5s (limit 500/min).",
     "Your text was flagged: violence/graphic, 2024-08-01T12:00:00Z",
     "Incorrect API key provided: the key is disabled. See https://docs.example.com/errors/api-keys",
     "ConnectError: [Errno 111] Connect call failed ('127.0.0.1', 34661)",
     "loading... please wait", "response_format.json_schema is not supported"],
)  # fmt: skip
@pytest.mark.parametrize("key", [KEY, "", "none"])
def test_other_words_stay(key: str, words: str) -> None:
    assert Masker(key, known=(MODEL,))(words) == words


def test_a_key_made_of_words_does_not_take_them_from_a_sentence() -> None:
    mask = Masker("my-judge-api-key-2024-alpha")
    words = "Incorrect API key provided; the judge API refuses it"
    assert mask(words) == words.replace("judge", MASK)
    echoes = (
        "my-judge-api-key-2024-alpha",
        "my-judge-api-...lpha",
        "my judge api key 2024 alpha",
        "MY_JUDGE_API_KEY",
        "judge\napi\nkey\n2024",
    )
    for echo in echoes:
        assert mask(f"wrong: {echo} sent") == f"wrong: {MASK} sent"


def test_short_keys_are_masked_as_words() -> None:
    assert Masker("ab1")("key ab1, not cab1n or AB1") == f"key {MASK}, not cab1n or {MASK}"
    assert Masker("EMPTY")("key EMPTY is empty") == f"key {MASK} is {MASK}"
    assert Masker("----")("key ---- is bad") == f"key {MASK} is bad"


def test_random_keys_and_cuts_leave_no_run_of_six() -> None:
    """1,000 keys of several alphabets, any piece of at least six characters, anywhere."""
    rng = random.Random(0)
    for _ in range(1000):
        alphabet = rng.choice(ALPHABETS)
        key = "".join(rng.choices(alphabet, k=rng.randint(12, 64)))
        start = rng.randrange(len(key) - 6)
        piece = key[start : start + rng.randint(6, 64)]
        if len(letters(piece)) < 6:
            continue
        glue = rng.choice(["", " ", "'", "/", "=", "**", "key:", "&", "_", "\n"])
        shown = Masker(key)(f"bad value {glue}{piece}{glue} sent")
        plain, whole = letters(shown.replace(MASK, " ")), letters(key)
        assert not any(whole[i : i + 6] in plain for i in range(len(whole) - 5)), (key, shown)


def test_masking_a_whole_page_takes_no_time() -> None:
    mask = Masker(KEY)
    start = time.perf_counter()
    for text in ("a" * 10**6, "x.y:" * 10**5, "%25" * 10**5, "-" * 10**5, "sk-" * 10**5,
                 "*1" * 10**5, "&amp;" * 10**5, "key: " * 10**5, f"{KEY} " * 10**4):  # fmt: skip
        assert len(mask(text)) <= 300
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("status", "echo"),
    [(status, "whole") for status in ("401", "403", "400", "500", "429", "200")]
    + [("401", echo) for echo in ("starred", "dots", "upper", "broken", "base64", "url")]
    + [("200", "dots")],
)
def test_no_error_log_metric_or_cache_holds_it(
    status: str,
    echo: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Whatever the status: at preflight, for one response, in a pause; also keys of an answer."""
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG, logger="herl_megatron")
    words = f"wrong key given: {ECHOES[echo]}"
    fault = f"says{status}:{words}"
    if status == "200":
        fault = "body:" + json.dumps({"error": {"message": words, "code": "odd"}})

    def script(response: str, call: int) -> str:
        return "ok" if response == "Blue." and call < 2 or call > 3 else fault

    with fake_judge(script) as server:
        config = settings(
            server, api_key_env="TEST_JUDGE_KEY", failure_window=2, retries=1, max_pause_s=0.3,
            cache=str(tmp_path / "cache.sqlite"),
        )  # fmt: skip

        async def work(client: JudgeClient) -> str:
            await client.preflight()
            try:
                results = await client.judge(make_prompt(), "a", make_prompt().rubric.criteria)
            except JudgeError as error:
                return f"{error!r} {error} {client.metrics()}"
            return f"{results} {client.metrics()}"

        said = use(config, work)
        server.script = lambda response, call: fault
        with pytest.raises(ValueError) as refused:
            use(config, lambda client: client.preflight())
    said += f"{refused.value} {refused.value.__cause__!r} {caplog.text}"
    assert "wrong key given" in said
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode("latin-1")
    plain, key = letters((said + kept).replace(MASK, " ")), letters(KEY)
    assert not any(key[i : i + 4] in plain for i in range(len(key) - 3)), said
    assert letters(b64(KEY))[:8] not in plain


def test_an_answer_that_holds_a_key_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    answer = json.dumps({"content": json.dumps({KEY: True})})
    with fake_judge(lambda response, call: f"message:{answer}") as server:
        (bad,), _ = judge_all(settings(server, api_key_env="TEST_JUDGE_KEY", retries=0), ["a"])
    assert "keys that were not asked for" in bad[0].reason and KEY[:6] not in bad[0].reason
