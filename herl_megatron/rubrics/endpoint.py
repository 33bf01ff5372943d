"""HTTP to the judge through the `openai` library, and every failure by its class."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, Literal

import openai
from pydantic import BaseModel, ValidationError

from herl_megatron.config.judge_rules import split_urls
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.judge.questions import Question

_log = logging.getLogger(__name__)

FailureKind = Literal[
    "transport", "timeout", "rate_limit", "server", "invalid", "canary", "evidence", "refused"
]
RETRIED: frozenset[FailureKind] = frozenset(
    ("transport", "timeout", "rate_limit", "server", "invalid", "canary", "evidence")
)
_NO_KEY = "none"  # the library wants one, and would otherwise take OPENAI_API_KEY
_COOL_DOWN_S = 30.0
_INSTEAD = {"max_completion_tokens": "max_tokens", "seed": ""}
"""Fields that a server may not know, and what older ones call them: a request goes without."""
_SHOWN = 300


class JudgeError(RuntimeError):
    """The judge cannot be used and waiting or asking again will not help: the run ends."""


class CallFailed(Exception):
    """One call gave no answer that can be used; `tokens` in and out were spent all the same."""

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        retry_after_s: float = 0.0,
        tokens: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.tokens = tokens


@dataclass(frozen=True)
class Reply:
    """A model's whole answer."""

    text: str
    tokens: tuple[int, int]
    """Of the prompt and of the answer."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Body(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class Endpoints:
    """The addresses of one model. They take turns; one that could not be reached, or failed with a
    server error, comes last for a while or until it answers.

    Raises ValueError when the key's environment variable is not set.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._key = read_key(config)
        self.urls = split_urls(config.base_url)
        self._clients = [
            openai.AsyncOpenAI(
                base_url=url, api_key=self._key or _NO_KEY, max_retries=0, timeout=config.timeout_s
            )
            for url in self.urls
        ]
        self._unknown: list[set[str]] = [set() for _ in self.urls]
        self._turn = 0
        self._bad_until = [0.0] * len(self.urls)

    @property
    def name(self) -> str:
        """Model, addresses and where the key comes from, for messages."""
        key = f"key from {self._config.api_key_env}" if self._config.api_key_env else "no key"
        return f"{self._config.model!r} at {', '.join(self.urls)} ({key})"

    async def ask(
        self, question: Question, *, attempt: int, timeout_s: float, index: int | None = None
    ) -> Reply:
        """The answer to one question, from the address `index` or whose turn it is.

        Raises:
            CallFailed: no whole answer; asking again may help.
            JudgeError: the endpoint refuses key, model or address.
        """
        index = self._next() if index is None else index
        try:
            # The library's own limit is per read: a server that drips would never reach it.
            async with asyncio.timeout(timeout_s):
                body = await self._send(index, self._request(question, attempt))
        except (openai.APITimeoutError, TimeoutError) as error:
            self._bad_until[index] = monotonic() + _COOL_DOWN_S
            raise CallFailed("timeout", f"no answer within {timeout_s:.3g} s") from error
        except openai.APIConnectionError as error:
            self._bad_until[index] = monotonic() + _COOL_DOWN_S
            cause = error.__cause__ or error
            shown = self._redact(f"{type(cause).__name__}: {cause}")
            raise CallFailed("transport", f"no connection ({shown})") from None
        except openai.APIStatusError as error:
            raise self._status_failure(error, index) from None
        except openai.OpenAIError as error:
            shown = self._redact(f"{type(error).__name__}: {error}")
            raise CallFailed("invalid", f"unreadable answer ({shown})") from None
        self._bad_until[index] = 0.0
        return _read(body)

    async def _send(self, index: int, request: dict[str, Any]) -> bytes:
        """The answer's body; a field that the server refuses by name is left out.

        From then on only where it answers without: a refusal may name a field for another reason,
        as "max_completion_tokens is too large" of one long response.
        """
        create = self._clients[index].chat.completions.with_raw_response.create
        left_out = set(self._unknown[index])
        first: openai.APIStatusError | None = None
        while True:
            known = _without(request, left_out)
            try:
                response: Any = await create(**known)
                break
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                first = first or error
                said = _said(error)
                refused = [n for n in _INSTEAD if n in known and re.search(rf"\b{n}\b", said)]
                if not refused:
                    raise first from None
                left_out.update(refused)
        if learnt := left_out - self._unknown[index]:
            self._unknown[index] |= learnt
            assert first is not None, "a field was left out that nobody refused"
            _log.warning(
                "%s does not take %s: %s; asking without",
                self.urls[index], " and ".join(sorted(learnt)), self._redact(_said(first)),
            )  # fmt: skip
        return bytes(response.http_response.content)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.close()

    def _next(self) -> int:
        """The next address in turn, those that failed lately last."""
        count = len(self.urls)
        order = [(self._turn + i) % count for i in range(count)]
        self._turn += 1
        now = monotonic()
        return min(order, key=lambda index: self._bad_until[index] > now)

    def _request(self, question: Question, attempt: int) -> dict[str, Any]:
        config = self._config
        request: dict[str, Any] = {
            "model": config.model,
            "messages": [{"role": m.role, "content": m.content} for m in question.messages],
            "max_completion_tokens": config.max_tokens,
            "seed": attempt,
        }
        if config.temperature is not None:
            request["temperature"] = config.temperature
        if config.structured == "json_object":
            request["response_format"] = {"type": "json_object"}
        elif config.structured == "json_schema":
            schema = {"name": "judgement", "strict": True, "schema": dict(question.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if config.extra_body:
            request["extra_body"] = dict(config.extra_body)
        return request

    def _status_failure(self, error: openai.APIStatusError, index: int) -> Exception:
        status = error.status_code
        said = self._redact(_said(error))
        where = f"{self.urls[index]} answered HTTP {status}"
        retry_after_s = _retry_after_s(error.response.headers)
        if status == 429:
            return CallFailed("rate_limit", f"{where}: {said}", retry_after_s=retry_after_s)
        if status >= 500 or status == 408:
            self._bad_until[index] = monotonic() + _COOL_DOWN_S
            return CallFailed("server", f"{where}: {said}", retry_after_s=retry_after_s)
        if status in (401, 403):  # what the server says may echo a part of the key
            fix = f"put a valid key into the environment variable {self._config.api_key_env}"
            if not self._config.api_key_env:
                fix = "name the environment variable that holds its key in judge.api_key_env"
            return JudgeError(f"it refuses access: {where} for {self._config.model!r}; {fix}")
        if status in (404, 405):
            return JudgeError(
                f"no such model or address: {where} for {self._config.model!r}: {said}; check"
                " judge.base_url (it ends before /chat/completions) and judge.model"
            )
        return CallFailed("refused", f"{where}: {said}")

    def _redact(self, text: str) -> str:
        """`text` without the key, on one line."""
        shown = " ".join(text.split())
        return (shown.replace(self._key, "[key]") if self._key else shown)[:_SHOWN]


def read_key(config: JudgeConfig) -> str:
    """The key from the environment, empty where none is configured.

    Raises:
        ValueError: the variable is not set.
    """
    if not config.api_key_env:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"judge.api_key_env names {config.api_key_env}, which is not set in the environment;"
            " set it to the key, or clear judge.api_key_env for an endpoint without one"
        )
    return key


def _read(body: bytes) -> Reply:
    try:
        parsed = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise CallFailed("invalid", f"not a chat completion: {first['msg']}") from None
    if not parsed.choices:
        raise CallFailed("invalid", "a chat completion without choices")
    choice = parsed.choices[0]
    usage = parsed.usage or _Usage()
    tokens = usage.prompt_tokens, usage.completion_tokens
    if choice.finish_reason == "length":
        raise CallFailed("invalid", "the answer was cut (raise judge.max_tokens)", tokens=tokens)
    if not choice.message.content:
        reason = choice.finish_reason
        raise CallFailed("invalid", f"an empty answer (finish_reason {reason})", tokens=tokens)
    return Reply(choice.message.content, tokens)


def _without(request: dict[str, Any], unknown: set[str]) -> dict[str, Any]:
    """The request with what `_INSTEAD` has for the fields that the server does not know."""
    names = {name: _INSTEAD[name] if name in unknown else name for name in request}
    return {names[name]: value for name, value in request.items() if names[name]}


def _said(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        return str(body["message"])
    return error.response.text


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds, or a date, of a Retry-After header; 0 without one that can be read."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0
