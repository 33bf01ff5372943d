"""A server's error in JSON, whatever its dialect, with HTTP 200 or not: words, status, wait. Pure.

Known dialects: OpenAI and those after it, vLLM's older `{"object": "error"}`, FastAPI's
`{"detail"}`, Google's list and its names for statuses, Anthropic's types, OpenRouter's errors in a
choice, and gateways with `{"code", "message"}`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from herl_megatron.rubrics.failures import ErrorReply

_ERRORS = ("error", "errors", "fault", "detail", "exception", "base_resp")
"""Fields that hold an error, or a part of it."""
_WORDS = (
    "message", "msg", "detail", "errormsg", "errormessage", "errmsg", "faultstring", "statusmsg",
    "statusmessage", "errordescription", "reason", "title", "description", "error",
)  # fmt: skip
_CODES = (
    "code", "status", "statuscode", "httpstatus", "httpstatuscode", "httpcode", "errorcode",
    "errcode", "errno", "type", "errortype", "reason",
)  # fmt: skip
"""Fields with an error's words, in order, and with its codes, written in letters alone."""
_FINE = frozenset((0, 200, "0", "200", "ok", "success", "succeeded"))
_NAMES: Mapping[int, tuple[str, ...]] = {
    400: ("invalidrequest", "badrequest", "invalidargument", "invalidparameter", "contextlength",
          "stringabovemax", "unprocessable", "failedprecondition"),
    401: ("unauthenticated", "unauthorized", "authentication", "invalidapikey", "invalidtoken"),
    403: ("permissiondenied", "permission", "forbidden", "accessdenied"),
    404: ("notfound", "modelnotexist", "nosuchmodel", "invalidmodel"),
    429: ("ratelimit", "toomanyrequests", "resourceexhausted", "quota", "throttl"),
    503: ("overloaded", "unavailable", "internalerror", "internalserver", "servererror",
          "apierror", "deadlineexceeded", "badgateway", "gatewaytimeout", "timeout"),
}  # fmt: skip
"""Beginnings and middles of errors' names, letters alone; the first that fits decides."""
_ABOUT_TEXT = (
    "contentfilter", "contentpolicy", "datainspection", "responsibleai", "moderation", "safety",
    "sensitive",
)  # fmt: skip
_STATUS_IN_WORDS = re.compile(
    r"\A\W*([45]\d\d)(?=\W*\Z|[\s:,\-]+[A-Z])"
    r"|(?i:\b(?:http(?:/[\d.]+)?|status|code)(?:[\s_]+(?:status|code|error))*[\s\"':=(]*)"
    r"([45]\d\d)\b"
)
_DEPTH = 5


def find_error(body: object) -> ErrorReply | None:
    """The error that `body` is, or None. An answer that has both is an error."""
    if isinstance(body, list):  # Google's streams
        found = (find_error(entry) for entry in body[:3] if isinstance(entry, dict))
        return next(filter(None, found), None)
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        if _is_error(choices[0].get("error")):
            return describe({"error": choices[0]["error"]})
        held = any(_is_error(body.get(name)) for name in ("error", "errors"))
        return describe(body) if held else None
    return describe(body) if _says_error(body) else None


def _says_error(body: Mapping[str, Any]) -> bool:
    """Whether a body without answers is an error: it says so, or has words and no good code."""
    held = any(_is_error(body.get(name)) for name in _ERRORS)
    if held or body.get("object") == "error" or body.get("type") == "error":
        return True
    fields = {_plain(name): value for name, value in body.items()}
    words = any(isinstance(fields.get(name), str) for name in _WORDS)
    fine = any(name in _CODES and _is_fine(value) for name, value in fields.items())
    return words and not fine


def describe(body: object) -> ErrorReply:
    """Words, status and wait of an error's body: parsed JSON, or text."""
    said = _said(body) or ("no words" if not body else json.dumps(body, allow_nan=True)[:1000])
    codes = list(_codes(body))
    names = [_plain(code) for code in codes if isinstance(code, str)]
    status = next((s for s in map(_as_status, codes) if s), 0) or _status_in(said)
    about_text = any(part in name for name in names for part in _ABOUT_TEXT)
    if not status:
        known = (
            s for name in names for s, parts in _NAMES.items() if any(p in name for p in parts)
        )
        status = 400 if about_text else next(known, 0)
    return ErrorReply(said, status=status, retry_after_s=_wait_s(body), about_text=about_text)


def describe_body(text: str) -> ErrorReply:
    """The same of the body of an HTTP error, which may be no JSON."""
    try:
        return describe(json.loads(text))
    except (ValueError, RecursionError):
        return describe(visible(text))


def visible(text: str) -> str:
    """HTML without its tags and scripts, other text as it is."""
    if not text.lstrip().startswith("<"):
        return text
    return re.sub(r"(?s)<(script|style)\b.{0,5000}?</\1>|<[^<>]{0,500}>", " ", text[:20_000])


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that an answer's headers ask to wait; 0 without a wait that can be read."""
    if wait_s := seconds(headers.get("retry-after-ms", "")):
        return wait_s / 1000
    return seconds(headers.get("retry-after", ""))


def seconds(value: object) -> float:
    """Of a Retry-After: a number, "34s" or a date; 0 where it says nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0.0
    try:
        if isinstance(value, str):
            value = value.strip()
            if not re.fullmatch(r"\d+(\.\d+)?s?", value):
                wait_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
                return max(wait_s, 0.0)
            value = value.rstrip("s")
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0


def _is_error(value: object) -> bool:
    """Whether a field for errors holds one; null, {} and "code 0" are none."""
    if isinstance(value, dict):
        return any(v not in (None, "", [], {}) and not _is_fine(v) for v in value.values())
    return bool(value)


def _is_fine(value: object) -> bool:
    if isinstance(value, bool) or isinstance(value, list | dict):
        return False
    return (value.lower() if isinstance(value, str) else value) in _FINE or value in (None, "")


def _objects(body: object, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The objects in an error, outermost first; what was asked or answered is left aside."""
    if depth > _DEPTH:
        return
    if isinstance(body, dict):
        yield body
        for name, value in body.items():
            if name not in ("choices", "usage"):
                yield from _objects(value, depth + 1)
    elif isinstance(body, list):
        for value in body[:10]:
            yield from _objects(value, depth + 1)


def _said(body: object) -> str:
    """The server's words: the innermost message that is a text."""
    if isinstance(body, str):
        return body.strip()
    if isinstance(body, list):
        return "; ".join(filter(None, map(_said, body[:3])))
    if not isinstance(body, dict):
        return ""
    inner = [body[name] for name in _ERRORS if isinstance(body.get(name), dict | list)]
    fields = {_plain(name): value for name, value in body.items()}
    texts = [fields[name] for name in _WORDS if isinstance(fields.get(name), str)]
    return next(filter(None, map(_said, [*inner, *texts])), "")


def _codes(body: object) -> Iterator[object]:
    """Codes and types, those of the error itself before those around it."""
    if isinstance(body, dict):
        inner = [body[name] for name in _ERRORS if isinstance(body.get(name), dict | list)]
        for value in inner:
            yield from _codes(value)
    if isinstance(body, list):
        for value in body[:3]:
            yield from _codes(value)
    if isinstance(body, dict):
        fields = {_plain(name): value for name, value in body.items()}
        yield from (fields[n] for n in _CODES if isinstance(fields.get(n), int | float | str))
        error = body.get("error")  # {"error": "rate_limit", "message": ...}, {"error": 429}
        if isinstance(error, int | float) or (isinstance(error, str) and " " not in error):
            yield error


def _plain(name: object) -> str:
    return re.sub(r"[^a-z]", "", str(name).lower())


def _as_status(code: object) -> int:
    """400 to 599 as number or text, else 0."""
    if isinstance(code, bool):
        return 0
    if isinstance(code, str):
        code = code.strip()
        if match := re.match(r"([45]\d\d)(?!\d)", code):
            return int(match[1])
        return 0
    return int(code) if isinstance(code, int | float) and 400 <= code < 600 else 0


def _status_in(said: str) -> int:
    """The status that a text names: "429 Too Many Requests", "Error code: 503"."""
    match = _STATUS_IN_WORDS.search(said[:1000])
    return int(match[1] or match[2]) if match else 0


def _wait_s(body: object) -> float:
    """The wait that an error asks for in its body."""
    for holder in _objects(body):
        for name, value in holder.items():
            plain = _plain(name)
            if plain == "retryafterms":
                return seconds(value) / 1000
            if plain in ("retryafter", "retryafters", "retryafterseconds", "retrydelay"):
                if wait_s := seconds(value):
                    return wait_s
    return 0.0
