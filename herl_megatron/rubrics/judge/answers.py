"""A judge's answer read and checked: verdicts, or why there are none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from herl_megatron.rubrics.judge.formats import BenchmarkGrader
from herl_megatron.rubrics.judge.guard import quote_is_in
from herl_megatron.rubrics.judge.questions import Question, Statement

Fault = Literal["", "invalid", "canary", "evidence"]
_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_CODE_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What can be used of one answer.

    verdicts: truth by the criterion's position in its unit.
    grade: the whole grade, None where none is asked for or it is not valid.
    fault: what kind of thing is wrong, `problem` in words; both empty if nothing is.
    unquoted: statements called true without a quote.
    """

    verdicts: Mapping[int, bool] = field(default_factory=dict)
    grade: int | None = None
    fault: Fault = ""
    problem: str = ""
    unquoted: int = 0


def read_answer(question: Question, text: str) -> Answer:
    """Check `text` against what was asked.

    All of it is void if it is no JSON object, has a key that was not asked for or twice, or is
    wrong about a canary. Otherwise a missing or bad entry is void alone.
    """
    if question.grader is not None:
        return _graders_answer(question.grader, text)
    try:
        entries = _json_object(text)
    except ValueError as error:
        return Answer(fault="invalid", problem=str(error))
    if unknown := [key for key in entries if key not in question.schema["properties"]]:
        return Answer(fault="invalid", problem=f"keys that were not asked for: {unknown[:3]}")
    faults: dict[Fault, list[str]] = {}
    verdicts: dict[int, bool] = {}
    unquoted = 0
    for key, statement in question.statements.items():
        truth, quote, fault = _verdict(question, statement, entries.get(key))
        if statement.position is None and fault:  # without its canaries an answer proves nothing
            problem = "wrong about" if fault == "canary" else "no valid entry for"
            return Answer(fault=fault, problem=f"{problem} a statement whose truth is known")
        if fault or truth is None:
            faults.setdefault(fault or "invalid", []).append(key)
        elif statement.position is not None:
            verdicts[statement.position] = truth
            unquoted += truth and not quote
    grade = _grade(question, entries)
    if question.grade_to and grade is None:
        faults.setdefault("invalid", []).append("grade")
    fault, problem = _described(faults)
    return Answer(verdicts, grade, fault, problem, unquoted if question.evidence else 0)


def _graders_answer(grader: BenchmarkGrader, text: str) -> Answer:
    """The answer of a benchmark's own grader, which is asked about one criterion."""
    try:
        said = grader.read(_REASONING.sub("", text))
    except ValueError as error:
        return Answer(fault="invalid", problem=str(error))
    return Answer(verdicts={0: said}) if isinstance(said, bool) else Answer(grade=said)


def _json_object(text: str) -> dict[str, Any]:
    """The object that the whole text is, but for a reasoning block before and a fence around it.

    JSON within other text is not looked for: it may be a copy from the response.
    """
    bare = _REASONING.sub("", text).strip()
    fenced = _CODE_FENCE.match(bare)
    try:
        value = json.loads(fenced[1] if fenced else bare, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not one JSON object: {error.msg}") from error
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object but {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _verdict(
    question: Question, statement: Statement, entry: object
) -> tuple[bool | None, str, Fault]:
    """Truth, quote and fault of one entry."""
    truth, quote = entry, ""
    if question.evidence:
        if not (isinstance(entry, dict) and entry.keys() == {"evidence", "true"}):
            return None, "", "invalid"
        truth, quote = entry["true"], entry["evidence"]
    if not isinstance(truth, bool) or not isinstance(quote, str):
        return None, "", "invalid"
    if statement.truth is not None:
        return truth, quote, "" if truth == statement.truth else "canary"
    if truth and quote.strip() and not quote_is_in(quote, question.response):
        return None, quote, "evidence"
    return truth, quote.strip(), ""


def _grade(question: Question, entries: Mapping[str, Any]) -> int | None:
    grade = entries.get("grade")
    if not isinstance(grade, int) or isinstance(grade, bool):
        return None
    return grade if 1 <= grade <= question.grade_to else None


def _described(faults: Mapping[Fault, list[str]]) -> tuple[Fault, str]:
    """The gravest fault, and all of them in words."""
    if not faults:
        return "", ""
    words = {
        "invalid": "no valid entry for",
        "evidence": "a quote that is not in the response for",
    }
    shown = [f"{words[name]} {len(keys)} of the statements" for name, keys in faults.items()]
    return ("invalid" if "invalid" in faults else "evidence"), " and ".join(shown)
