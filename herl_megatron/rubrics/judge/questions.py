"""A unit as a request: messages, the schema of the answer, and what each key stands for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from herl_megatron.rubrics.judge.formats import BenchmarkGrader
from herl_megatron.rubrics.judge.grader_prompt import GraderPrompt, grader_messages
from herl_megatron.rubrics.judge.guard import (
    absent_word,
    excerpt,
    make_marker,
    neutralise,
    shuffled,
)
from herl_megatron.rubrics.judge.units import Unit
from herl_megatron.rubrics.judge.wording import statements_task, system_message, user_message
from herl_megatron.types import Message


@dataclass(frozen=True)
class Style:
    """How to ask (`config.schema.JudgeConfig`): `template` of the user message, or empty."""

    evidence: bool = True
    canary: bool = True
    template: str = ""
    grader: GraderPrompt | None = None
    """A benchmark's own prompt, in place of all others."""


@dataclass(frozen=True)
class Statement:
    """One statement of a request: a criterion by its position, or a canary with its truth."""

    text: str
    position: int | None = None
    truth: bool | None = None


@dataclass(frozen=True)
class Question:
    """One request. `statements` and, where the judge grades, the grade make up the answer.

    statements: by the key of the answer, in the order in which they are shown.
    grade_to: the top of the grade's scale, 0 without a grade.
    response: as it is shown to the judge, which is what quotes are looked up in.
    grader: reads the answer, and no schema is sent, where a benchmark's own prompt is asked.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    statements: Mapping[str, Statement]
    grade_to: int
    evidence: bool
    response: str
    grader: BenchmarkGrader | None = None


def make_question(
    unit: Unit, missing: Collection[int], *, attempt: int, style: Style = Style()
) -> Question:
    """Ask for the criteria of `unit` at the positions `missing` (all of them where one grade is
    given). Each `attempt` has its own marker and order of statements."""
    assert missing, "nothing is missing"
    if style.grader is not None:
        return _graders_question(unit, style.grader)
    response = neutralise(unit.response)
    conversation = [[m.role, m.content] for m in unit.prompt.messages]
    described = [c.description for c in unit.criteria]
    marker = make_marker(conversation, unit.response, described, sorted(missing), attempt)
    assert marker not in unit.response, "a response holds its own marker"
    statements = _statements(unit, missing, marker, response if style.canary else None)
    keys, grade_to, evidence = tuple(statements), unit.form.grade_to, style.evidence
    user = user_message(
        style.template or unit.form.template,
        marker,
        prompt=unit.prompt,
        response=response,
        task=_task(unit, statements),
        keys=keys,
        grade_to=grade_to,
        evidence=evidence,
    )
    rules = system_message(marker, keys=keys, grade_to=grade_to, evidence=evidence)
    return Question(
        messages=(Message("system", rules), Message("user", user)),
        schema=_schema(keys, grade_to=grade_to, evidence=evidence),
        statements=statements,
        grade_to=grade_to,
        evidence=evidence,
        response=response,
    )


def _graders_question(unit: Unit, prompt: GraderPrompt) -> Question:
    assert unit.form.grader is not None, f"no benchmark asks in the format {unit.form.name}"
    return Question(
        messages=grader_messages(unit, prompt),
        schema={"properties": {"grade": {}}},  # not told to the endpoint
        statements={},
        grade_to=unit.form.grade_to,
        evidence=False,
        response=unit.response,
        grader=unit.form.grader,
    )


def _statements(
    unit: Unit, missing: Collection[int], marker: str, canaries_of: str | None
) -> dict[str, Statement]:
    """By key, in the order that follows from the marker; a grade takes the place of criteria."""
    listed: list[Statement] = []
    if unit.form.grading is None:
        listed = [Statement(unit.criteria[i].description, position=i) for i in sorted(missing)]
    if canaries_of is not None:
        listed += _canaries(marker, canaries_of)
    order = [listed[i] for i in shuffled(listed, marker)]
    return {f"s{number}": item for number, item in enumerate(order, start=1)}


def _task(unit: Unit, statements: Mapping[str, Statement]) -> str:
    """What the grade is about, where there is one, and the statements."""
    told = statements_task({key: item.text for key, item in statements.items()})
    if unit.form.grading is None:
        return told
    task = unit.form.grading.task(unit.criteria)
    return f"{task}\n\n{told}" if statements else task


def _canaries(marker: str, response: str) -> list[Statement]:
    """One statement that is false of this response and, unless it is blank, one that is true."""
    word = absent_word(marker, response)
    found = [Statement(f'The response contains the word "{word}".', truth=False)]
    if words := excerpt(marker, response):
        found.append(Statement(f"The response contains this text: {words}", truth=True))
    return found


def _schema(keys: tuple[str, ...], *, grade_to: int, evidence: bool) -> dict[str, Any]:
    """JSON schema of exactly these keys; it depends on their number alone, so servers that
    compile schemas compile few."""
    quoted = {
        "type": "object",
        "properties": {"evidence": {"type": "string"}, "true": {"type": "boolean"}},
        "required": ["evidence", "true"],
        "additionalProperties": False,
    }
    properties: dict[str, Any] = {key: quoted if evidence else {"type": "boolean"} for key in keys}
    if grade_to and evidence:
        properties["reason"] = {"type": "string"}
    if grade_to:
        properties["grade"] = {"type": "integer", "enum": list(range(1, grade_to + 1))}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
