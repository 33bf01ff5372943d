"""HTTP to the judge through the `openai` library, and every failure by its class."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import openai

from herl_megatron.config.proxies import by_way_of, proxy_problem
from herl_megatron.config.rules.scoring import split_urls
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.error_replies import describe_body, retry_after_s
from herl_megatron.rubrics.failures import CallFailed, ErrorReply, JudgeError, Refused
from herl_megatron.rubrics.judge.questions import Question
from herl_megatron.rubrics.masking import Masker
from herl_megatron.rubrics.replies import JudgeReply, read_reply

_log = logging.getLogger(__name__)

_NO_KEY = "none"  # the library wants one, and would otherwise take OPENAI_API_KEY
_COOL_DOWN_S = 30.0
_GONE_S = 300.0
_INSTEAD = {"max_completion_tokens": "max_tokens", "seed": ""}
"""Fields that a server may not know, and what older ones call them: a request goes without."""
_ACCESS = (401, 402, 403, 404, 405, 407, 410)
"""Statuses that may be about key, model or address rather than about one request."""


@dataclass(eq=False)
class Address:
    """One address of the model, and how it has fared.

    way: the proxy on the way there, as the end of a message.
    unknown: fields that its server does not know.
    bad_until: it comes last until then (monotonic).
    served: it has answered once, so it takes key and model.
    gone: it refused a response and then a probe.
    refusals: since its last answer.
    probed_at: when a probe last told a refused text from a lost address (monotonic).
    """

    url: str
    client: openai.AsyncOpenAI
    way: str = ""
    unknown: set[str] = field(default_factory=set)
    bad_until: float = 0.0
    served: bool = False
    gone: bool = False
    refusals: int = 0
    probed_at: float = -math.inf
    open: int = 0
    """Requests that wait for an answer."""
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def request(self) -> Iterator[None]:
        """One request is open inside."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            self.heard.set()
            self.heard = asyncio.Event()

    async def known(self) -> bool:
        """Whether it has ever answered; where that is open, once one has or none is under way."""
        while self.open and not self.served:
            await self.heard.wait()
        return self.served

    def answered(self) -> None:
        """It has given a whole answer."""
        if self.gone:
            _log.info("%s answers again", self.url)
        self.served, self.gone, self.refusals, self.bad_until = True, False, 0, 0.0

    def lose(self) -> None:
        """It refuses everything: the others do its work."""
        self.gone, self.bad_until = True, monotonic() + _GONE_S


class Endpoints:
    """The addresses of one model. They take turns; one that could not be reached, or failed with a
    server error, comes last for a while or until it answers.

    Raises ValueError when the key's environment variable is not set, or one names a proxy that no
    client can be made with.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        key = read_key(config)
        if problem := proxy_problem():
            raise ValueError(problem)
        self.mask = Masker(key, known=(config.model,))
        """What a server says, fit to be shown."""
        limit_s = config.timeout_s
        self.addresses = [
            Address(
                url,
                openai.AsyncOpenAI(
                    base_url=url, api_key=key or _NO_KEY, max_retries=0, timeout=limit_s
                ),
                by_way_of(url),
            )
            for url in split_urls(config.base_url)
        ]
        self._turn = 0

    @property
    def name(self) -> str:
        """Model, addresses and where the key comes from, for messages."""
        key = f"key from {self._config.api_key_env}" if self._config.api_key_env else "no key"
        return f"{self._config.model!r} at {', '.join(a.url for a in self.addresses)} ({key})"

    async def ask(
        self, question: Question, *, attempt: int, timeout_s: float, index: int | None = None
    ) -> JudgeReply:
        """The answer to one question, from the address `index` or whose turn it is.

        Raises:
            CallFailed: no whole answer; asking again may help. `Refused` by an address.
            JudgeError: an address that has never answered refuses key, model or address.
        """
        index = self._next() if index is None else index
        address = self.addresses[index]
        try:
            # The library's own limit is per read: a server that drips would never reach it.
            with address.request():
                async with asyncio.timeout(timeout_s):
                    response = await self._send(address, self._request(question, attempt))
                    reply = read_reply(response.content, self.mask)
                    address.answered()
                    return reply
        except (openai.APITimeoutError, TimeoutError) as error:
            address.bad_until = monotonic() + _COOL_DOWN_S
            late = f"no answer within {timeout_s:.3g} s{address.way}"
            raise CallFailed("timeout", late) from error
        except openai.APIConnectionError as error:
            address.bad_until = monotonic() + _COOL_DOWN_S
            cause = error.__cause__ or error
            shown = self.mask(f"{type(cause).__name__}: {cause}")
            raise CallFailed("transport", f"no connection ({shown}){address.way}") from None
        except openai.APIStatusError as error:
            found = describe_body(error.response.text)
            found.retry_after_s = retry_after_s(error.response.headers) or found.retry_after_s
            where = f"{address.url} answered HTTP {error.status_code}{address.way}"
            raise await self._failure(found, error.status_code, where, index) from None
        except ErrorReply as error:
            error.retry_after_s = error.retry_after_s or retry_after_s(response.headers)
            where = f"{address.url} answered HTTP {response.status_code} with an error{address.way}"
            if error.status:
                where += f" of status {error.status}"
            raise await self._failure(error, error.status, where, index) from None
        except openai.OpenAIError as error:
            shown = self.mask(f"{type(error).__name__}: {error}")
            raise CallFailed("invalid", f"unreadable answer ({shown})") from None

    async def _send(self, address: Address, request: dict[str, Any]) -> Any:
        """The response, read whole; a field that the server refuses by name is left out.

        From then on only where it answers without: a refusal may name a field for another reason,
        as "max_completion_tokens is too large" of one long response.
        """
        create = address.client.chat.completions.with_raw_response.create
        left_out = set(address.unknown)
        first: openai.APIStatusError | None = None
        while True:
            known = _without(request, left_out)
            try:
                response: Any = await create(**known)
                break
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                first = first or error
                said = describe_body(error.response.text).said
                refused = [n for n in _INSTEAD if n in known and re.search(rf"\b{n}\b", said)]
                if not refused:
                    raise first from None
                left_out.update(refused)
        if learnt := left_out - address.unknown:
            address.unknown |= learnt
            assert first is not None, "a field was left out that nobody refused"
            _log.warning(
                "%s does not take %s: %s; asking without",
                address.url, " and ".join(sorted(learnt)),
                self.mask(describe_body(first.response.text).said),
            )  # fmt: skip
        return response.http_response

    async def close(self) -> None:
        """Close all connections."""
        for address in self.addresses:
            await address.client.close()

    def _next(self) -> int:
        """The next address in turn, those that failed lately last, and behind them those that
        refuse everything."""
        count = len(self.addresses)
        order = [(self._turn + i) % count for i in range(count)]
        self._turn += 1
        now = monotonic()

        def rank(index: int) -> int:
            address = self.addresses[index]
            return (1 + address.gone) if address.bad_until > now else 0

        return min(order, key=rank)

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
        if question.grader is not None:
            pass  # a benchmark's prompt says itself how to answer
        elif config.structured == "json_object":
            request["response_format"] = {"type": "json_object"}
        elif config.structured == "json_schema":
            schema = {"name": "judgement", "strict": True, "schema": dict(question.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if config.extra_body:
            request["extra_body"] = dict(config.extra_body)
        return request

    async def _failure(self, error: ErrorReply, status: int, where: str, index: int) -> Exception:
        """A server's error by its class; an unknown one is an answer that cannot be used."""
        address = self.addresses[index]
        said, wait_s = f"{where}: {self.mask(error.said)}", error.retry_after_s
        if status == 429:
            return CallFailed("rate_limit", said, retry_after_s=wait_s)
        if status >= 500 or status == 408:
            address.bad_until = monotonic() + _COOL_DOWN_S
            return CallFailed("server", said, retry_after_s=wait_s)
        if not status:
            return CallFailed("invalid", said, retry_after_s=wait_s)
        access = status in _ACCESS and not error.about_text
        end = self._end(status, where, self.mask(error.said))
        if access and not await address.known():
            return JudgeError(end)
        return Refused(said, index=index, access=access, end=end)

    def _end(self, status: int, where: str, said: str) -> str:
        """What a refusal means that is not about one text."""
        config = self._config
        if status in (401, 402, 403, 407):
            fix = f"put a valid key into the environment variable {config.api_key_env}"
            if not config.api_key_env:
                fix = "name the environment variable that holds its key in judge.api_key_env"
            return f"it refuses access: {where} for {config.model!r}: {said}; {fix}"
        if status in _ACCESS:
            return (
                f"no such model or address: {where} for {config.model!r}: {said}; check"
                " judge.base_url (it ends before /chat/completions) and judge.model"
            )
        return f"it refuses every request: {where} for {config.model!r}: {said}"


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


def _without(request: dict[str, Any], unknown: set[str]) -> dict[str, Any]:
    """The request with what `_INSTEAD` has for the fields that the server does not know."""
    names = {name: _INSTEAD[name] if name in unknown else name for name in request}
    return {names[name]: value for name, value in request.items() if names[name]}
