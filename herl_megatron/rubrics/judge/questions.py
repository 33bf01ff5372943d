"""A unit as a request: messages, the schema of the answer, and what each key stands for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from herl_megatron.rubrics.aggregations import SCALES
from herl_megatron.rubrics.judge.guard import (
    absent_word,
    excerpt,
    make_marker,
    neutralise,
    shuffled,
)
from herl_megatron.rubrics.judge.prompts import (
    TEMPLATE,
    TEMPLATE_WITH_REFERENCE,
    grade_task,
    statements_task,
    system_message,
    user_message,
)
from herl_megatron.rubrics.judge.protocol import GraderPrompt, grader_messages
from herl_megatron.rubrics.judge.units import Unit
from herl_megatron.types import JudgeFormat, Message


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
    own: whether it is a benchmark's own question, whose answers `judge.protocol` reads.
    """

    form: JudgeFormat
    messages: tuple[Message, ...]
    schema: Mapping[str, Any]
    statements: Mapping[str, Statement]
    grade_to: int
    evidence: bool
    response: str
    own: bool = False


def make_question(
    unit: Unit, missing: Collection[int], *, attempt: int, style: Style = Style()
) -> Question:
    """Ask for the criteria of `unit` at the positions `missing` (all of them where one grade is
    given). Each `attempt` has its own marker and order of statements."""
    assert missing, "nothing is missing"
    if style.grader is not None:
        return Question(
            form=unit.form,
            messages=grader_messages(unit, style.grader),
            schema={"properties": {"grade": {}}},  # not told to the endpoint
            statements={},
            grade_to=SCALES[unit.form].top if unit.form in SCALES else 0,
            evidence=False,
            response=unit.response,
            own=True,
        )
    response = neutralise(unit.response)
    conversation = [[m.role, m.content] for m in unit.prompt.messages]
    described = [c.description for c in unit.criteria]
    marker = make_marker(conversation, unit.response, described, sorted(missing), attempt)
    assert marker not in unit.response, "a response holds its own marker"
    graded = unit.form in SCALES
    listed: list[Statement] = []
    if not graded:
        listed = [Statement(unit.criteria[i].description, position=i) for i in sorted(missing)]
    if style.canary:
        listed += _canaries(marker, response)
    order = [listed[i] for i in shuffled(listed, marker)]
    statements = {f"s{number}": item for number, item in enumerate(order, start=1)}
    texts = {key: item.text for key, item in statements.items()}
    grade_to = SCALES[unit.form].top if graded else 0
    task = grade_task(unit.form, unit.criteria, texts) if graded else statements_task(texts)
    with_reference = unit.form is JudgeFormat.CHECKLIST
    template = style.template or (TEMPLATE_WITH_REFERENCE if with_reference else TEMPLATE)
    user = user_message(
        template,
        marker,
        prompt=unit.prompt,
        response=response,
        task=task,
        keys=tuple(statements),
        grade_to=grade_to,
        evidence=style.evidence,
    )
    return Question(
        form=unit.form,
        messages=(
            Message(
                "system",
                system_message(
                    marker, keys=tuple(statements), grade_to=grade_to, evidence=style.evidence
                ),
            ),
            Message("user", user),
        ),
        schema=_schema(tuple(statements), grade_to=grade_to, evidence=style.evidence),
        statements=statements,
        grade_to=grade_to,
        evidence=style.evidence,
        response=response,
    )


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
