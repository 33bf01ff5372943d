"""Rules of sections `scoring` and `judge` that need no request. No message repeats a credential."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from herl_megatron.config.hooks import name_problem
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import Config, JudgeConfig
from herl_megatron.config.secrets import (
    is_secret_for_sure,
    resembles_secret,
    shown,
    shown_file,
    shown_name,
)
from herl_megatron.files.os_errors import absent

if TYPE_CHECKING:  # it imports torch, which a scorer of rules does without
    from herl_megatron.config.machine import Machine

_VARIABLE = re.compile("[A-Z][A-Z0-9_]*")
_NO_VARIABLE = (
    "judge.api_key_env must be the name of an environment variable, in capitals, such as"
    " JUDGE_API_KEY; the key itself never stands in a configuration"
)


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    name = config.scoring.group_reward
    if purpose != "train" or not name:
        return
    if problem := name_problem(name):
        yield f"scoring.group_reward: {name!r} {problem}"


def split_urls(base_url: str) -> list[str]:
    """The addresses in `judge.base_url`."""
    return [url.strip().rstrip("/") for url in base_url.split(",") if url.strip()]


def unwritable_problems(config: Config) -> Iterator[str]:
    """What may neither be printed nor written into a `config.yaml`: credentials, and numbers that
    come out as something else. `config.load` refuses it, so nothing ever holds it."""
    judge = config.judge
    for url in split_urls(judge.base_url):
        if problem := _login_problem(url):
            yield problem
    if judge.api_key_env and not _VARIABLE.fullmatch(judge.api_key_env):
        yield _NO_VARIABLE
    yield from _credentials(judge.extra_body, "judge.extra_body")
    yield from _unwritable(judge.extra_body, "judge.extra_body")
    yield from _unwritable(config.data.chat_template_args, "data.chat_template_args")
    for path, text in _texts(config.model_dump()):
        said = path.startswith(("judge.extra_body", "judge.api_key_env")) or (
            path == "judge.base_url" and "@" in text
        )
        if is_secret_for_sure(text) and not said:
            yield (
                f"{path} may hold a credential, which would be written into config.yaml; take it"
                " out: the judge's key comes from the variable that judge.api_key_env names"
            )


def _texts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a configuration, with its key's path."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _texts(value, f"{path}.")
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, str):
                yield path, item


def judge_problems(judge: JudgeConfig, *, files: bool = True) -> Iterator[str]:
    """What is wrong with the section, whether or not a run will use it. files: whether those that
    it names are looked for."""
    for url in split_urls(judge.base_url):
        if problem := _url_problem(url):
            yield problem
    if judge.base_url and not judge.model:
        yield "judge.model is empty; name the model that is served at judge.base_url"
    if judge.model and not judge.base_url:
        yield (
            f"judge.model is {shown('model', judge.model)} and judge.base_url is empty, so nobody"
            " would be asked; set judge.base_url to where it is served, or take judge.model out"
        )
    if judge.api_key_env and not _VARIABLE.fullmatch(judge.api_key_env):
        yield _NO_VARIABLE
    yield from _extra_body_problems(judge.extra_body)
    yield from _unwritable(judge.extra_body, "judge.extra_body")
    for key, file in (("prompt", judge.prompt), ("grader_prompt", judge.grader_prompt)):
        if files and file and (problem := absent(file, "file")):
            yield (
                f"judge.{key}: {problem}: {shown_file(file)!r} (from {Path.cwd()}); mend the path"
            )
    if judge.prompt and judge.grader_prompt:
        yield (
            "judge.prompt and judge.grader_prompt are both given, but one question is asked: take"
            " one of them out"
        )
    if judge.samples % 2 == 0:
        yield (
            f"judge.samples is {judge.samples}; of an even number of verdicts none need have the"
            " majority: use an odd number"
        )
    if judge.max_cost and not (judge.price_in or judge.price_out):
        yield (
            f"judge.max_cost is {judge.max_cost:g}, but judge.price_in and judge.price_out are 0,"
            " so nothing would count: set the prices of a million tokens, or cap judge.max_calls"
        )
    if judge.deadline_s < judge.timeout_s:
        yield (
            f"judge.deadline_s is {judge.deadline_s:g}, below judge.timeout_s {judge.timeout_s:g}:"
            " one slow answer would leave no time to ask again; raise it"
        )


_OURS = {
    "model": "set judge.model",
    "messages": "judge.prompt names a message of your own",
    "temperature": "set judge.temperature",
    "max_tokens": "set judge.max_tokens",
    "max_completion_tokens": "set judge.max_tokens",
    "response_format": "set judge.structured",
    "seed": "it tells repeated questions apart",
    "n": "set judge.samples",
    "best_of": "set judge.samples",
    "stream": "an answer is read whole",
    "stream_options": "an answer is read whole",
    "tools": "a judge answers with text",
    "tool_choice": "a judge answers with text",
    "functions": "a judge answers with text",
    "function_call": "a judge answers with text",
}
"""Fields of a request that the client fills or relies on, and what to do instead."""


_WRAPPERS = {
    "body", "extra_args", "generation_config", "litellm_params", "options", "parameters", "params",
    "request", "sampling_params",
}  # fmt: skip
"""Fields inside which servers take fields of the request once more."""


def _plain(name: str) -> str:
    """A field's name as lenient servers compare it: `maxTokens` and `Max-Tokens` are
    `max_tokens`."""
    return re.sub("[^a-z0-9]", "", name.casefold())


_OURS_PLAIN = {_plain(name): instead for name, instead in _OURS.items()}
_WRAPPERS_PLAIN = {_plain(name) for name in _WRAPPERS}


def _extra_body_problems(
    extra: Mapping[str, Any], where: str = "judge.extra_body"
) -> Iterator[str]:
    for name, value in extra.items():
        plain = _plain(name)
        path = f"{where}.{shown_name(name)}"
        if plain == "extrabody":
            yield f"{path} cannot be set: judge.extra_body holds the fields itself; take it out"
        elif instead := _OURS_PLAIN.get(plain):
            yield f"{path} cannot be set: {instead}; take it out"
        elif plain in _WRAPPERS_PLAIN and isinstance(value, Mapping):
            yield from _extra_body_problems(value, path)
        else:
            yield from _credentials({name: value}, where)


def _credentials(extra: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, value in extra.items():
        if resembles_secret("", {name: value}):
            yield (
                f"{where}.{shown_name(name)} may be a credential, which would be written into"
                " config.yaml; name the environment variable that holds a key in judge.api_key_env"
            )


def _unwritable(values: Mapping[str, Any], where: str) -> Iterator[str]:
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        yield f"{where} holds NaN or infinity, which JSON cannot; give finite numbers"


def _url_problem(url: str) -> str:
    """Why an address cannot be used, or the empty string."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "judge.base_url cannot be read as an address; it must read like http://host:8000/v1"
    if problem := _login_problem(url):
        return problem
    if parts.scheme not in ("http", "https") or not host:
        return f"judge.base_url is {shown('base_url', url)}; it must read like http://host:8000/v1"
    return ""


def _login_problem(url: str) -> str:
    """Why an address may hold a credential, or the empty string."""
    if "@" in url:
        return (
            "judge.base_url holds a user name or password; take it out and name the environment"
            " variable that holds the key in judge.api_key_env"
        )
    if "?" in url or "#" in url:
        return "judge.base_url has a query or fragment; a key comes from judge.api_key_env alone"
    return ""
