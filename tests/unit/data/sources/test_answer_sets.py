"""MATH-500, GPQA and CSV: rows with one final answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from herl_megatron.data.sources.common import RejectedRow, SourceRow
from herl_megatron.data.sources.gpqa import choice_order
from herl_megatron.data.sources.prepare import Job, prepare
from herl_megatron.data.sources.read import BrokenRow, Input, read_rows
from herl_megatron.rubrics.worker import score_text
from herl_megatron.types import Criterion, Scored
from tests.unit.data.sources.source_cases import convert

PROBLEM = {
    "problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "answer": "2", "level": 1,
    "subject": "Algebra", "unique_id": "test/algebra/1.json",
}  # fmt: skip
QUESTION = {
    "Question": "Which is a bird?\n", "Correct Answer": " owl ", "Incorrect Answer 1": "oak",
    "Incorrect Answer 2": "ash", "Incorrect Answer 3": "elm", "Record ID": "rec1",
    "High-level domain": "Biology", "Subdomain": "", "Explanation": "It flies.", "Feedback": "no",
}  # fmt: skip


def reward(prompt: Any, text: str) -> float:
    score = score_text(prompt.rubric, text, {}, check_timeout_s=20.0, mode="strict")
    assert isinstance(score, Scored)
    return score.reward


def test_math_500_row() -> None:
    prompt = convert("math_500", PROBLEM).prompt
    assert (prompt.id, prompt.source) == ("math_500-test/algebra/1.json", "math_500")
    asked = prompt.messages[0].content
    assert asked.startswith("What is $1+1$?\n\n") and asked.endswith("in \\boxed{}.")
    assert prompt.rubric.criteria == (Criterion("c1", "rule", "math/answer", {"answer": "2"}),)
    assert prompt.reference_answer == PROBLEM["solution"]
    assert prompt.extra == {"level": 1, "subject": "Algebra"}
    assert (reward(prompt, str(PROBLEM["solution"])), reward(prompt, "\\boxed{3}")) == (1.0, 0.0)
    with pytest.raises(RejectedRow, match="no text under 'answer'"):
        convert("math_500", PROBLEM | {"answer": ""})


def test_gpqa_row_has_its_choices_in_an_order_of_its_own() -> None:
    """SHA-256 of rec1/0 to rec1/3 begins with 05, 23, d0, 88: right one, first, third, second."""
    assert choice_order("rec1") == [0, 1, 3, 2]
    prompt = convert("gpqa", QUESTION).prompt
    assert (prompt.id, prompt.source) == ("gpqa-rec1", "gpqa")
    asked = "Which is a bird?\n\nA) owl\nB) oak\nC) elm\nD) ash\n\n"
    assert prompt.messages[0].content.startswith(asked)
    assert prompt.rubric.criteria[0].params == {"letter": "A", "choices": 4}
    assert prompt.extra == {"order": [0, 1, 3, 2], "domain": "Biology"}
    assert prompt.reference_answer == "It flies."
    assert (reward(prompt, "\\boxed{A}"), reward(prompt, "\\boxed{B}")) == (1.0, 0.0)
    other = convert("gpqa", QUESTION | {"Record ID": "rec2"}).prompt
    order = choice_order("rec2")
    assert other.extra["order"] == order
    assert other.rubric.criteria[0].params["letter"] == "ABCD"[order.index(0)]


def test_gpqa_rows_without_one_right_choice() -> None:
    with pytest.raises(RejectedRow, match="it is 'owl'"):
        convert("gpqa", QUESTION | {"Incorrect Answer 2": "owl"})
    with pytest.raises(RejectedRow, match="'Incorrect Answer 3'"):
        convert("gpqa", QUESTION | {"Incorrect Answer 3": " "})
    notes = convert("gpqa", QUESTION | {"Incorrect Answer 2": "oak"}).notes
    assert notes == ("two wrong choices are equal",)


def test_csv_is_read_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffQuestion,Record ID\n"a, ""b""\nc",1\n\nx\ny,2\n', encoding="utf-8")
    rows = read_rows(Input(str(path), split="test"))
    assert rows == [
        SourceRow(1, {"Question": 'a, "b"\nc', "Record ID": "1"}, "test"),
        BrokenRow(2, "['x']", "1 columns; the first line names 2", "test"),
        SourceRow(3, {"Question": "y", "Record ID": "2"}, "test"),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,a\n1,2\n", "each by another name"),
        (b'a,b\n"1,2\n', "no CSV that can be read: unexpected end of data"),
        (b"a\n\xff\n", "no CSV that can be read: 'utf-8' codec"),
        (b"\n", "its first line must name the columns"),
        (b"a,b\n", "there are no rows"),
    ],
)
def test_what_is_no_csv_is_refused_with_its_name(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows\.csv: .*{problem}"):
        read_rows(Input(str(path)))


def test_the_whole_way_from_csv_to_held_out_rows(tmp_path: Path) -> None:
    header = [key for key in QUESTION if key != "Question"]
    lines = [",".join(["Question", *header])]
    lines += [",".join([f"Bird {n}?", *(QUESTION[key] for key in header)]) for n in range(3)]
    (tmp_path / "gpqa.csv").write_text("\n".join(lines) + "\n")
    report = prepare(Job("gpqa", (Input(str(tmp_path / "gpqa.csv")),), tmp_path / "out"))
    assert report["rows"] == {"in": 3, "eval": 3, "rejected": 0}
    assert report["sources"] == {"eval": {"gpqa": 3}}
