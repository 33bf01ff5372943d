"""Proxies of the environment: named where a request goes through one, refused where none can."""

from __future__ import annotations

import os

import pytest

from herl_megatron.config.proxies import by_way_of, proxy_problem
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.client import JudgeClient

CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def test_the_proxy_on_the_way_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert by_way_of("http://judge.example/v1") == ""
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy.example:3128")
    said = by_way_of("http://judge.example/v1")
    assert "http://***@proxy.example:3128 that http_proxy names" in said
    assert "NO_PROXY=judge.example" in said and "secret" not in said
    assert by_way_of("https://judge.example/v1") == ""
    monkeypatch.setenv("ALL_PROXY", "http://other.example:1")
    assert "other.example:1 that ALL_PROXY names" in by_way_of("https://judge.example/v1")
    monkeypatch.setenv("NO_PROXY", "judge.example")
    assert by_way_of("http://judge.example/v1") == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "ftp://proxy.example:1", "ALL_PROXY is 'ftp://.*a proxy begins with http"),
        ("http_proxy", "socks4://proxy.example:1", "http_proxy is 'socks4://"),
        ("https_proxy", "http://:8080", "https_proxy is 'http://:8080', which is no address"),
        ("http_proxy", "http://a:b:c", "http_proxy is .*, which is no address of a proxy"),
    ],
)
def test_a_proxy_that_no_client_takes_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    assert proxy_problem() == ""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{said}.*env -u {name} herl"):
        JudgeClient(JudgeConfig(base_url=f"{CLOSED}/v1", model="m"))


def test_a_socks_proxy_without_its_package_is_no_import_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:1080")
    problem = proxy_problem()
    assert "ALL_PROXY is 'socks5://***@127.0.0.1:1080'" in problem and "socksio" in problem
    monkeypatch.setenv("NO_PROXY", "*")
    assert proxy_problem() == ""


async def test_a_judge_that_only_the_proxy_keeps_away_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", CLOSED)
    judge = JudgeConfig(
        base_url="http://judge.example/v1", model="m", retries=0, retry_wait_s=0.01, timeout_s=5
    )
    client = JudgeClient(judge)
    with pytest.raises(ValueError, match=f"by way of the proxy {CLOSED} that http_proxy names"):
        await client.preflight()
    await client.close()
