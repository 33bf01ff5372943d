"""The body of an answered request read: the model's text, or what stands there instead. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from herl_megatron.rubrics.error_replies import find_error, visible
from herl_megatron.rubrics.failures import CallFailed

_REFUSING = frozenset(
    ("contentfilter", "contentfiltered", "safety", "prohibitedcontent", "blocklist", "recitation",
     "spii", "refusal", "moderation", "sensitive", "blocked", "guardrailintervened")
)  # fmt: skip
_CUT = frozenset(("length", "maxtokens", "modelcontextwindowexceeded", "modellength"))
_BROKEN = frozenset(("error", "abort", "aborted", "cancelled", "canceled", "networkerror"))
"""Finish reasons, letters alone: the text was refused, cut, or given up by the server."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_MOST_TOKENS = 10**12

Mask = Callable[[str], str]
"""Makes a server's words fit to be shown."""


@dataclass(frozen=True)
class JudgeReply:
    """A model's whole answer."""

    text: str
    tokens: tuple[int, int]
    """Of the prompt and of the answer."""


def read_reply(body: bytes, mask: Mask) -> JudgeReply:
    """The answer in the body of an HTTP 200.

    Raises:
        ErrorReply: it is an error of the server after all.
        CallFailed: it holds no whole answer: `refused` where the model or a filter refuses this
            text, else `invalid`, or `server` where the server gave up.
    """
    parsed = _parsed(body, mask)
    if (error := find_error(parsed)) is not None:
        raise error
    choice = _first_choice(parsed, mask)
    tokens = _tokens(parsed.get("usage"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise CallFailed("invalid", f"not a chat completion: {_instead_of_message(choice)}")
    said = choice.get("finish_reason")
    reason = re.sub(r"[^a-z]", "", said.lower()) if isinstance(said, str) else ""
    try:
        text, refusal = _content(message.get("content"), mask)
    except CallFailed as failure:
        failure.tokens = tokens
        raise
    refusal = message.get("refusal") or refusal
    if refusal or reason in _REFUSING:
        shown = f": {mask(str(refusal))}" if refusal else f" (finish_reason {mask(str(said))})"
        who = "the model refuses to judge it" if refusal else "a content filter stopped the answer"
        raise CallFailed("refused", who + shown, tokens=tokens, answered=True)
    if reason in _BROKEN:
        raise CallFailed("server", f"the answer broke off (finish_reason {said})", tokens=tokens)
    if reason in _CUT or not text.strip():
        problem = _why_empty(message, said, cut=reason in _CUT, text=text, mask=mask)
        raise CallFailed("invalid", problem, tokens=tokens, answered=True)
    return JudgeReply(text, tokens)


def _parsed(body: bytes, mask: Mask) -> Any:
    """The body's JSON."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CallFailed("invalid", "not a chat completion: the body is not UTF-8") from None
    stripped = text.strip()
    if not stripped:
        raise CallFailed("invalid", "not a chat completion: the body is empty")
    if re.match(r"(?:data|event|id|retry)?:", stripped):
        _raise_stream(stripped, mask)
    try:
        value, end = json.JSONDecoder(parse_int=_integer).raw_decode(stripped)
    except (ValueError, RecursionError):
        kind = "HTML" if stripped.startswith("<") else "no JSON"
        if stripped[0] in "{[":
            kind = f"JSON that ends or breaks within {len(stripped)} characters"
        raise CallFailed(
            "invalid", f"not a chat completion but {kind}: {mask(visible(stripped))}"
        ) from None
    if rest := stripped[end:].strip():
        if (error := find_error(value)) is not None:
            raise error
        raise CallFailed(
            "invalid",
            f"JSON with {len(rest)} more characters after its end, so it is unclear which is the"
            f" answer: {mask(rest)}",
        )
    return value


def _integer(digits: str) -> int | float:
    """Python reads no integer of over 4,300 digits; nothing here needs more than a float has."""
    return int(digits) if len(digits) < 20 else float(digits)


def _raise_stream(text: str, mask: Mask) -> None:
    """A body of server-sent events; an error within them says what it is. Comments before a
    plain body (": still working") are no events and are refused the same way."""
    # Not `splitlines`: an event may hold what that would cut at too.
    for line in re.split(r"\r\n|\r|\n", text):
        if line.startswith("data:"):
            try:
                event = json.loads(line.removeprefix("data:"))
            except (ValueError, RecursionError):
                continue
            if (error := find_error(event)) is not None:
                raise error
    raise CallFailed(
        "invalid",
        "a stream of events (SSE) where one JSON object was asked for; switch streaming off in the"
        f" server or proxy, or in judge.extra_body: {mask(text)}",
    )


def _first_choice(parsed: Any, mask: Mask) -> Mapping[str, Any]:
    if not isinstance(parsed, dict):
        said = f": {mask(parsed)}" if isinstance(parsed, str) else ""
        raise CallFailed("invalid", f"not a chat completion but {_kind(parsed)}{said}")
    choices = parsed.get("choices")
    if choices == []:
        raise CallFailed("invalid", "a chat completion without choices")
    if not (isinstance(choices, list) and isinstance(choices[0], dict)):
        names = mask(", ".join(sorted(map(str, parsed))) or "none")
        raise CallFailed("invalid", f"not a chat completion: no choices (its fields: {names})")
    return choices[0]


def _instead_of_message(choice: Mapping[str, Any]) -> str:
    if isinstance(choice.get("delta"), dict):
        return "a piece of a stream (`delta`); switch streaming off in the server or proxy"
    if isinstance(choice.get("text"), str):
        return "a text completion; judge.base_url must end before /chat/completions"
    return "its first choice has no message"


def _content(content: object, mask: Mask) -> tuple[str, str]:
    """The text, a list of its parts joined, and a refusal that is one of them.

    Thoughts are left out; a part that is neither makes the answer invalid, since nobody can say
    what it would have changed.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    parts = content if isinstance(content, list) else [content]
    texts, refusals = [], []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else ""
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and kind == "refusal":
            refusals.append(str(part.get("refusal") or "no reason given"))
        elif isinstance(part, dict) and (
            part.get("thought") is True or kind in ("thinking", "reasoning", "redacted_thinking")
        ):
            continue
        elif isinstance(part, dict) and kind in ("text", "output_text"):
            texts.append(_part_text(part))
        else:
            shown = kind if isinstance(part, dict) else _kind(part)
            raise CallFailed(
                "invalid", f"content with a part that is no text: {mask(str(shown))}", answered=True
            )
    return "".join(texts), " ".join(refusals)


def _part_text(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if isinstance(text, dict):
        text = text.get("value")
    if not isinstance(text, str):
        raise CallFailed("invalid", f"a text part that holds {_kind(text)}", answered=True)
    return text


def _why_empty(
    message: Mapping[str, Any], reason: object, *, cut: bool, text: str, mask: Mask
) -> str:
    """What is there instead of an answer, and what may help."""
    thoughts = [name for name in _THOUGHTS if message.get(name)]
    calls = [name for name in ("tool_calls", "function_call") if message.get(name)]
    there = [f"{name} of {len(_as_text(message[name]))} characters" for name in thoughts]
    there += [f"{name} ({_count(message[name])})" for name in calls]
    hints = []
    if cut or thoughts:
        hints.append("raise judge.max_tokens")
    if thoughts:
        hints.append(
            "switch thinking off in judge.extra_body, for many models with"
            " {chat_template_kwargs: {enable_thinking: false}}"
        )
    if calls:
        hints.append("take tools out of judge.extra_body")
    instead = f", but {' and '.join(there)}" if there else ""
    fix = f" ({'; or '.join(hints)})" if hints else ""
    if cut and text.strip():
        return f"the answer was cut{instead}{fix}"
    return f"an empty answer{instead}: finish_reason {mask(str(reason))}{fix}"


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, allow_nan=True)


def _count(value: object) -> int:
    return len(value) if isinstance(value, list) else 1


def _tokens(usage: object) -> tuple[int, int]:
    """Tokens in and out; what cannot be read costs nothing and voids no answer."""
    if not isinstance(usage, dict):
        return 0, 0
    return _whole(usage.get("prompt_tokens")), _whole(usage.get("completion_tokens"))


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if not (math.isfinite(value) if isinstance(value, float) else True):
        return 0
    return int(value) if 0 <= value <= _MOST_TOKENS and value == int(value) else 0


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
