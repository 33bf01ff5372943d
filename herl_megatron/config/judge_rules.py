"""Rules of the judge's section that need no request. No message repeats a credential."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from herl_megatron.config.schema import JudgeConfig

DECIDES_VERDICTS = frozenset(
    {"evidence", "canary", "samples", "structured", "temperature", "max_tokens", "extra_body"}
)
"""Keys of the judge section, besides model and prompt, on which its answers depend."""


def split_urls(base_url: str) -> list[str]:
    """The addresses in `judge.base_url`."""
    return [url.strip().rstrip("/") for url in base_url.split(",") if url.strip()]


def judge_problems(judge: JudgeConfig) -> Iterator[str]:
    """What is wrong with the section, whether or not a run will use it."""
    for url in split_urls(judge.base_url):
        if problem := _url_problem(url):
            yield problem
    if judge.base_url and not judge.model:
        yield "judge.model is empty; name the model that is served at judge.base_url"
    if judge.api_key_env and not re.fullmatch(r"[A-Z][A-Z0-9_]*", judge.api_key_env):
        yield (
            "judge.api_key_env must be the name of an environment variable, in capitals, such as"
            " JUDGE_API_KEY; the key itself never stands in a configuration"
        )
    if judge.prompt and not Path(judge.prompt).is_file():
        yield f"judge.prompt: no such file: {judge.prompt!r} (from {Path.cwd()}); mend the path"
    if judge.samples % 2 == 0:
        yield (
            f"judge.samples is {judge.samples}; of an even number of verdicts none need have the"
            " majority: use an odd number"
        )
    if judge.deadline_s < judge.timeout_s:
        yield (
            f"judge.deadline_s is {judge.deadline_s:g}, below judge.timeout_s {judge.timeout_s:g}:"
            " one slow answer would leave no time to ask again; raise it"
        )


def _url_problem(url: str) -> str:
    """Why an address cannot be used, or the empty string."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "judge.base_url cannot be read as an address; it must read like http://host:8000/v1"
    if "@" in parts.netloc:
        return (
            "judge.base_url holds a user name or password; take it out and name the environment"
            " variable that holds the key in judge.api_key_env"
        )
    if parts.query or parts.fragment:
        return "judge.base_url has a query or fragment; a key comes from judge.api_key_env alone"
    if parts.scheme not in ("http", "https") or not host:
        return f"judge.base_url is {url!r}; it must read like http://host:8000/v1"
    return ""
