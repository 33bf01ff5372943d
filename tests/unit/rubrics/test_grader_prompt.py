"""A benchmark's own prompt: what is sent, what is read, what becomes of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.rubrics.judge import formats
from herl_megatron.rubrics.judge.formats import JudgeFormat
from herl_megatron.rubrics.judge.grader_prompt import read_grader_prompt
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.rubrics.scorer import require_judge
from herl_megatron.types import (
    Aggregation,
    Criterion,
    Message,
    Prompt,
    Rubric,
    Scored,
    Verdict,
)
from tests.unit.rubrics.client_cases import judge_all
from tests.unit.rubrics.grader_cases import grader, settings


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
        (formats.POINTS, '{"criteria_met": "true"}'),
        (formats.POINTS, "[1]"),
        (formats.BANDS, '{"score": true, "reason": "x"}'),
        (formats.BANDS, '{"score": 5}'),
        (formats.CHECKLIST, "4"),
    ],
)
def test_answers_in_another_format_are_none(form: JudgeFormat, text: str) -> None:
    assert form.grader is not None
    with pytest.raises(ValueError):
        form.grader.read(text)


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
