"""A judge that follows a script, over real HTTP: the truth, and every way of failing to tell it.

The model behind it is simulated: it reads the messages as a model would see them (control tokens
split them into turns), finds the response between the markers that the system message names and
answers the statements that it understands.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[str, int], str]
"""What happens to the n-th call (from 0) about a response: "ok" or one of `FakeJudge._act`."""
Model = Callable[[list[dict[str, str]], dict[str, Any]], dict[str, Any]]
"""Messages and schema to the answer."""


def shown_response(messages: list[dict[str, str]]) -> str:
    """What stands between the markers that the system message names."""
    (mark,) = re.findall(r"\bmark ([0-9a-f]{16})\.", messages[0]["content"])
    begin, end = f"===== begin response {mark}\n", f"\n===== end response {mark}"
    return messages[1]["content"].split(begin)[1].split(end)[0]


def asked_statements(messages: list[dict[str, str]]) -> dict[str, str]:
    """The statements by key, after the response."""
    return dict(re.findall(r"^(s\d+): (.*)$", messages[1]["content"].split("===== end ")[-1], re.M))


def is_true(statement: str, response: str) -> bool:
    """What an honest reader says about the kinds of statements that tests use."""
    if match := re.fullmatch(r'The response contains the word "(\w+)"\.', statement):
        return re.search(rf"\b{match[1]}\b", response, re.IGNORECASE) is not None
    if match := re.fullmatch(r"The response contains this text: (.*)", statement):
        return match[1] in " ".join(response.split())
    if match := re.fullmatch(r"The response has at least (\d+) words\.", statement):
        return len(response.split()) >= int(match[1])
    return statement == "The response names a colour."  # the probe's


def honest(messages: list[dict[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
    """True verdicts; a grade is the number of words, up to the scale's end."""
    response = shown_response(messages)
    answer: dict[str, Any] = {}
    statements = asked_statements(messages)
    for key, wanted in schema["properties"].items():
        if key == "grade":
            answer[key] = max(1, min(len(response.split()), max(wanted["enum"])))
        elif key == "reason":
            answer[key] = "words counted"
        else:
            truth = is_true(statements[key], response)
            quote = " ".join(response.split()[:3]) if truth else ""
            quoted = wanted["type"] == "object"
            answer[key] = {"evidence": quote, "true": truth} if quoted else truth
    return answer


class FakeJudge:
    """The server. `calls` are counted by response as it was shown."""

    def __init__(self, script: Script | None = None, model: Model = honest) -> None:
        self.script: Script = script or (lambda response, call: "ok")
        self.model = model
        self.calls: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.at: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """What goes into `judge.base_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        """Stop, hanging calls included."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                judge._answer(self, json.loads(body))

            def log_message(self, format: str, *args: Any) -> None:
                """Silence."""

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        response = shown_response(request["messages"])
        with self._lock:
            call = self.calls[response]
            self.calls[response] += 1
            self.requests.append(request)
            self.headers.append({k.lower(): v for k, v in handler.headers.items()})
            self.at.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._act(handler, request, self.script(response, call))
        finally:
            with self._lock:
                self._at_once -= 1

    def _act(self, handler: BaseHTTPRequestHandler, request: dict[str, Any], action: str) -> None:
        name, _, argument = action.partition(":")
        if name.isdigit():  # "429:1.5" has a Retry-After
            headers = {"Retry-After": argument} if argument else {}
            key = handler.headers.get("Authorization", "")
            said = {"error": {"message": f"status {name}; you sent {key}", "code": None}}
            send(handler, int(name), json.dumps(said), headers)
            return
        if name == "lacks":  # "lacks:seed,top_k" refuses these fields, one at a time
            if unknown := [field for field in argument.split(",") if field in request]:
                said = {"error": {"message": f"Unrecognized request argument: {unknown[0]}"}}
                send(handler, 400, json.dumps(said), {})
                return
        if name.startswith("says"):  # "says:no", "says403:no"
            status = int(name.removeprefix("says") or 400)
            send(handler, status, json.dumps({"error": {"message": argument}}), {})
            return
        if name == "body":  # "body:{...}" is sent as it is, "body-7:{...}" with Retry-After
            send(handler, 200, argument, {})
            return
        if name.startswith("body-"):
            send(handler, 200, argument, {"Retry-After": name.removeprefix("body-")})
            return
        if name == "reset":
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.close_connection = True
            handler.connection.close()
            return
        if name == "hang":
            self._closing.wait(30)
            handler.close_connection = True
            return
        if name == "slow":
            time.sleep(float(argument))
        answer = self.model(request["messages"], schema_of(request))
        text = json.dumps(answer)
        if name == "wrong_json":
            text = text[: len(text) // 2]
        elif name == "wrong_ids":
            text = text.replace('"s1"', '"c1"')
        elif name == "extra_ids":
            text = json.dumps(answer | {"s99": next(iter(answer.values()))})
        elif name == "missing":
            text = json.dumps({k: v for k, v in answer.items() if k not in argument.split(",")})
        elif name == "prose":
            text = f"Sure! Here it is: {text}"
        body = completion(text, finish="length" if name == "cut" else "stop")
        if name in ("message", "choice", "top"):  # "message:{...}" changes fields there
            body = changed(body, name, json.loads(argument))
        elif name == "parts":  # the text in two parts, after a thought
            half = len(text) // 2
            texts = [{"type": "text", "text": part} for part in (text[:half], text[half:])]
            content = [{"type": "thinking", "thinking": "{"}, *texts]
            body = changed(body, "message", {"content": content})
        if name == "truncated":
            send(handler, 200, body, {}, cut=len(body) // 2)
        elif name == "half":
            send(handler, 200, body[: len(body) // 2], {})
        elif name == "no_choices":
            send(
                handler,
                200,
                json.dumps({"id": "x", "object": "chat.completion", "choices": []}),
                {},
            )
        elif name == "stream":
            chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
            events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
            send(handler, 200, events, {}, content="text/event-stream")
        elif name == "twice":
            send(handler, 200, body + body, {})
        elif name == "html":
            send(handler, 200, "<html>busy</html>", {}, content="text/html")
        elif name == "drip":
            send(handler, 200, body, {}, pause_s=0.1)
        else:
            send(handler, 200, body, {})


def schema_of(request: dict[str, Any]) -> dict[str, Any]:
    """The schema that the request carries; empty where it has none."""
    given: dict[str, Any] = request.get("response_format", {}).get("json_schema", {})
    schema: dict[str, Any] = given.get("schema", {})
    return schema


def completion(text: str, *, finish: str = "stop") -> str:
    """The body of a chat completion: 100 tokens in, 10 out."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps(
        {
            "id": "x", "object": "chat.completion", "created": 1, "model": "fake",
            "choices": [choice], "usage": usage,
        }
    )  # fmt: skip


def changed(body: str, where: str, fields: Mapping[str, Any]) -> str:
    """A completion with other fields in its message, its choice or at the top."""
    parsed = json.loads(body)
    choice = parsed["choices"][0]
    {"message": choice["message"], "choice": choice, "top": parsed}[where].update(fields)
    return json.dumps(parsed)


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: str,
    headers: Mapping[str, str],
    *,
    cut: int | None = None,
    pause_s: float = 0.0,
    content: str = "application/json",
) -> None:
    """One response; `cut` closes after so many bytes, `pause_s` waits after every byte."""
    data = body.encode()
    handler.send_response(status)
    handler.send_header("Content-Type", content)
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    try:
        if pause_s:
            for byte in data:
                handler.wfile.write(bytes([byte]))
                time.sleep(pause_s)
        else:
            handler.wfile.write(data[:cut])
    except OSError:  # the client has gone
        handler.close_connection = True
    if cut is not None:
        handler.close_connection = True


@contextmanager
def fake_judge(script: Script | None = None, model: Model = honest) -> Iterator[FakeJudge]:
    """A server that is stopped at the end."""
    judge = FakeJudge(script, model)
    try:
        yield judge
    finally:
        judge.close()
