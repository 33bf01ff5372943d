"""A server that says what it is told to, asked with a benchmark's own prompt."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from herl_megatron.config.schema import JudgeConfig


class Grader:
    """Says what it is told to, in order (the last one for ever), and keeps what it was sent."""

    def __init__(self, answers: Sequence[str], port: int) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{port}/v1"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        choice = {"index": 0, "finish_reason": "stop",
                  "message": {"role": "assistant", "content": said}}  # fmt: skip
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1,
                                               "total_tokens": 2}}  # fmt: skip


@contextmanager
def grader(*answers: str) -> Iterator[Grader]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps(made.answer(json.loads(body))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Grader(answers, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def settings(server: Grader, file: Path, text: str, **changes: Any) -> JudgeConfig:
    file.write_text(text, encoding="utf-8")
    values: dict[str, Any] = {
        "base_url": server.url, "model": "m", "grader_prompt": str(file), "retry_wait_s": 0.01,
        "cache": "", "failure_window": 1000, "retries": 2,
    }  # fmt: skip
    return JudgeConfig(**values | changes)
