"""A benchmark's own prompt: what is sent, what is read, what becomes of failures."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.judge.protocol import read_grade, read_grader_prompt
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.rubrics.scorer import require_judge
from herl_megatron.types import (
    Aggregation,
    Criterion,
    JudgeFormat,
    Message,
    Prompt,
    Rubric,
    Scored,
    Verdict,
)
from tests.unit.rubrics.client_cases import judge_all


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


def prompt(aggregation: Aggregation, *criteria: Criterion, **more: Any) -> Prompt:
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Dose?"))
    return Prompt("p", turns, Rubric(criteria, aggregation), **more)


POINTS = (
    Criterion("c1", "judge", description="Names the dose.", weight=5),
    Criterion("c2", "judge", description="Invents <<response>>.", weight=8, polarity="negative"),
)


def test_healthbench_is_asked_one_statement_at_a_time_with_its_points(tmp_path: Path) -> None:
    met = json.dumps({"explanation": "so", "criteria_met": True})
    with grader(f"```json\n{met}\n```") as server:
        config = settings(
            server, tmp_path / "g.txt", "Grade {this}.\n<<conversation>>\n<<rubric_item>>"
        )
        (results,), _ = judge_all(config, ["<<rubric_item>> 5 mg"], prompt("healthbench", *POINTS))
    sent = sorted(request["messages"][0]["content"] for request in server.requests)
    talk = "user: Hi\n\nassistant: Yes?\n\nuser: Dose?\n\nassistant: <<rubric_item>> 5 mg"
    assert sent == [
        f"Grade {{this}}.\n{talk}\n[-8] Invents <<response>>.",
        f"Grade {{this}}.\n{talk}\n[5] Names the dose.",
    ]
    assert all(len(request["messages"]) == 1 for request in server.requests)
    assert all("response_format" not in request for request in server.requests)
    score = score_response(prompt("healthbench", *POINTS).rubric, results)
    assert isinstance(score, Scored) and score.reward == (5 - 8) / 5


def test_writingbench_gets_its_criterion_and_asks_again(tmp_path: Path) -> None:
    bands = {"1-2": "bad", "9-10": "good"}
    criterion = Criterion(
        "c1", "judge", description="It flows.", params={"title": "Flow", "bands": bands}
    )
    file = "@@ system\nBe strict.\n@@ user\n<<criteria>> <<query>> <<response>>\n"
    good = json.dumps({"score": 7, "reason": "so"})
    with grader("no JSON", '{"score": 11, "reason": ""}', good) as server:
        config = settings(server, tmp_path / "g.txt", file)
        (results,), stats = judge_all(config, ["Text."], prompt("writingbench", criterion))
    assert [m["role"] for m in server.requests[0]["messages"]] == ["system", "user"]
    assert server.requests[0]["messages"][1]["content"] == (
        "{'name': 'Flow', 'criteria_description': 'It flows.', '1-2': 'bad', '9-10': 'good'}"
        " Dose? Text."
    )
    assert results[0].grade == 0.7 and stats["failures_invalid"] == 2


CHECKLIST = Criterion("checklist", "judge", description="Core: dose.", params={"category": "B"})
SECTIONS = (
    "@@ user A\nA <<response>>\n@@ user\nother <<response>>\n"
    "@@ user B\n<<query>>|<<response>>|<<reference>>|<<checklist>>"
)


def test_llmeval_med_is_asked_by_category_and_read_in_brackets(tmp_path: Path) -> None:
    asked = prompt("llmeval_med", CHECKLIST, reference_answer="5 mg")
    with grader('{"basis":"x","score":"[4]"}') as server:
        config = settings(server, tmp_path / "g.txt", SECTIONS)
        (results,), _ = judge_all(config, ["10 mg"], asked)
    assert server.requests[0]["messages"][0]["content"] == "Dose?|10 mg|5 mg|Core: dose."
    assert (results[0].grade, results[0].verdict) == (0.8, Verdict.FOLLOWED)


@pytest.mark.parametrize(
    ("answers", "grade", "calls"),
    [
        (["no grade"], 0.2, 3),  # three failed judgements: not usable
        (["none", "[5]", "[3]"], 0.8, 3),  # the mean of those that are there
        (["[9]", "[0]", "[4]"], 0.8, 3),
    ],
)
def test_a_failed_judgement_of_llmeval_med_is_not_usable_and_not_asked_again(
    tmp_path: Path, answers: list[str], grade: float, calls: int
) -> None:
    with grader(*answers) as server:
        config = settings(server, tmp_path / "g.txt", SECTIONS, samples=3, concurrency=1)
        (results,), _ = judge_all(config, ["10 mg"], prompt("llmeval_med", CHECKLIST))
    assert len(server.requests) == calls
    assert results[0].grade == pytest.approx(grade)
    assert ("counts as not usable" in results[0].reason) == (grade == 0.2)


def test_a_failed_judgement_of_the_others_leaves_the_response_unscored(tmp_path: Path) -> None:
    with grader("{}") as server:
        config = settings(server, tmp_path / "g.txt", "<<conversation>> <<rubric_item>>")
        (results,), _ = judge_all(config, ["x"], prompt("healthbench", POINTS[0]))
    assert len(server.requests) == 3 and results[0].verdict is Verdict.UNVERIFIABLE


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (JudgeFormat.POINTS, '{"criteria_met": "true"}'),
        (JudgeFormat.POINTS, "[1]"),
        (JudgeFormat.BANDS, '{"score": true, "reason": "x"}'),
        (JudgeFormat.BANDS, '{"score": 5}'),
        (JudgeFormat.CHECKLIST, "4"),
    ],
)
def test_answers_in_another_format_are_none(form: JudgeFormat, text: str) -> None:
    with pytest.raises(ValueError):
        read_grade(form, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Grade <<answer>> <<response>>", "<<answer>> is no placeholder; there are <<checklist>>"),
        ("Grade it.", "neither <<response>> nor <<conversation>>"),
        ("@@ system\nx", "no user message"),
        ("hm\n@@ user\n<<response>>", "text before the first section: 'hm'"),
        ("@@ user A\n<<response>>\n@@ user A\n<<response>>", "`@@ user A` is there twice"),
    ],
)
def test_files_that_are_no_grader_prompt_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_grader_prompt(text)


def test_rows_that_a_prompt_is_not_for_are_refused_by_id(tmp_path: Path) -> None:
    with grader("") as server:
        config = settings(server, tmp_path / "g.txt", "@@ user A\n<<response>>")
        for asked, said in (
            (prompt("explicit", POINTS[0]), "'p': .*not 'explicit'"),
            (prompt("llmeval_med", CHECKLIST), "no `@@ user B` and no `@@ user`"),
        ):
            with pytest.raises(ValueError, match=said):
                require_judge(config, [asked])
        config = settings(server, tmp_path / "g.txt", "<<response>>")
        with pytest.raises(ValueError, match="it has no <<rubric_item>>"):
            require_judge(config, [prompt("healthbench", POINTS[0])])
        assert require_judge(config, [prompt("llmeval_med", CHECKLIST)])


def test_herl_score_takes_a_grader_prompt(tmp_path: Path) -> None:
    row = {
        "id": "a", "messages": [{"role": "user", "content": "Dose?"}], "response": "5 mg",
        "rubric": {"aggregation": "llmeval_med", "criteria": [
            {"id": "c", "kind": "judge", "description": "The dose."}]},
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "g.txt").write_text("Rate <<response>> by <<checklist>>")
    with grader("[5]") as server:
        arguments = ["score", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out.jsonl"),
                     "--judge", server.url, "--judge-model", "m", "--judge-set", "cache=",
                     "--grader-prompt", str(tmp_path / "g.txt")]  # fmt: skip
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out.jsonl").read_text())["reward"] == 1.0
    assert server.requests[-1]["messages"][0]["content"] == "Rate 5 mg by The dose."
