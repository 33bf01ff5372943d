"""A benchmark's own protocol: its prompt from a user's file, its answers, its failed judgements.

For numbers that compare with a benchmark's. HealthBench, WritingBench and LLMEval-Med grade with
prompts of their own (aggregations `healthbench`, `writingbench`, `llmeval_med`); these are in the
benchmarks' repositories, and a user names a file that holds one (`judge.grader_prompt`). It is sent
as it stands but for placeholders, each of which may occur any number of times:

    <<conversation>>  all turns and the response, "role: text" with a blank line between
    <<query>>         the last user message
    <<response>>      the response
    <<rubric_item>>   HealthBench: "[points] statement"
    <<criteria>>      WritingBench: name, description and bands, as Python prints a dict
    <<reference>>     the reference answer
    <<checklist>>     LLMEval-Med: the checklist

A line `@@ system` begins the system message, `@@ user` the user message, and `@@ user NAME` that of
rows whose category is NAME (LLMEval-Med has five). A file without such lines is a user message.

Nothing guards such a question against a response that speaks to the grader: for measuring alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herl_megatron.rubrics.judge.units import Unit
from herl_megatron.types import Criterion, JudgeFormat, Message, Prompt

FORMATS = (JudgeFormat.POINTS, JudgeFormat.BANDS, JudgeFormat.CHECKLIST)
"""What benchmarks with graders of their own need to hear."""
_SECTION = re.compile(r"^@@ (system|user)(?: +(\S.*?))? *$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"<<(\w+)>>")
_NEEDS: Mapping[JudgeFormat, tuple[str, ...]] = {
    JudgeFormat.POINTS: ("rubric_item",),
    JudgeFormat.BANDS: ("criteria",),
    JudgeFormat.CHECKLIST: (),
}
_KNOWN = {
    "conversation", "query", "response", "rubric_item", "criteria", "reference", "checklist",
}  # fmt: skip
_MARK = re.compile(r"\[(\d+)\]")
_FENCE = re.compile(r"\A```(?:json)?\s*|\s*```\Z")
NOT_USABLE = 1
"""The grade of a response whose judgement failed, where the benchmark counts it as not usable."""


@dataclass(frozen=True)
class GraderPrompt:
    """A file's messages. users: by category, under "" that of all others."""

    users: Mapping[str, str]
    system: str = ""

    def problem(self, prompt: Prompt, form: JudgeFormat) -> str:
        """Why a row cannot be asked about with this file, or the empty string."""
        if form not in FORMATS:
            return (
                "a grader's prompt is for the aggregations healthbench, writingbench and"
                f" llmeval_med, not {prompt.rubric.aggregation!r}"
            )
        categories = {_category(c) for c in prompt.rubric.criteria if c.kind == "judge"}
        for category in sorted(categories):
            if category not in self.users and "" not in self.users:
                return f"it has no `@@ user {category}` and no `@@ user` for all others"
            names = _names(self.user(category))
            if missing := [name for name in _NEEDS[form] if name not in names]:
                return f"it has no <<{missing[0]}>>, which says what is asked"
        return ""

    def user(self, category: str) -> str:
        """The message for rows of a category."""
        return self.users[category] if category in self.users else self.users[""]


def read_grader_prompt(text: str) -> GraderPrompt:
    """A file's text.

    Raises:
        ValueError: an unknown placeholder, a section twice, no user message, or one that does not
            show the response.
    """
    pieces = _SECTION.split(text)
    sections = {("user", ""): pieces[0]} if len(pieces) == 1 else {}
    if len(pieces) > 1 and pieces[0].strip():
        raise ValueError(f"there is text before the first section: {pieces[0].strip()[:40]!r}")
    for kind, name, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if (kind, name or "") in sections:
            raise ValueError(f"the section `@@ {kind} {name or ''}`".rstrip() + " is there twice")
        sections[kind, name or ""] = body
    system = sections.pop(("system", ""), "").strip()
    users = {name: body.strip() for (kind, name), body in sections.items() if kind == "user"}
    if not users or not all(users.values()):
        raise ValueError("there is no user message, or an empty one")
    for body in (system, *users.values()):
        if unknown := sorted(_names(body) - _KNOWN):
            known = ", ".join(f"<<{name}>>" for name in sorted(_KNOWN))
            raise ValueError(f"<<{unknown[0]}>> is no placeholder; there are {known}")
    for body in users.values():
        if not _names(body) & {"response", "conversation"}:
            raise ValueError("a user message shows neither <<response>> nor <<conversation>>")
    return GraderPrompt(users, system)


def grader_messages(unit: Unit, grader: GraderPrompt) -> tuple[Message, ...]:
    """The messages about a unit: placeholders filled in one pass, so that nothing in a response
    is."""
    (criterion,) = unit.criteria
    turns = [*unit.prompt.messages, Message("assistant", unit.response)]
    points = criterion.weight if criterion.polarity == "positive" else -criterion.weight
    values = {
        "conversation": "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns),
        "query": next((m.content for m in reversed(unit.prompt.messages) if m.role == "user"), ""),
        "response": unit.response,
        "rubric_item": f"[{points:g}] {criterion.description}",
        "criteria": str(_criteria(criterion)),
        "reference": unit.prompt.reference_answer or "",
        "checklist": "" if criterion.params.get("no_checklist") else criterion.description,
    }

    def fill(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

    user = Message("user", fill(grader.user(_category(criterion))))
    return (Message("system", fill(grader.system)), user) if grader.system else (user,)


def read_grade(form: JudgeFormat, text: str) -> bool | int:
    """The verdict (HealthBench) or grade of an answer in the benchmark's format.

    Raises:
        ValueError: it is not in that format.
    """
    if form is JudgeFormat.CHECKLIST:
        mark = _MARK.search(text)
        if mark is None or not 1 <= int(mark[1]) <= 5:
            raise ValueError("no grade from [1] to [5]")
        return int(mark[1])
    try:
        answer = json.loads(_FENCE.sub("", text.strip()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    key, kinds = ("criteria_met", bool) if form is JudgeFormat.POINTS else ("score", int)
    value: Any = answer.get(key) if isinstance(answer, dict) else None
    if type(value) is not kinds:
        raise ValueError(f"no {key!r} that is a {'truth value' if kinds is bool else 'number'}")
    if form is JudgeFormat.BANDS:
        if not 1 <= value <= 10:
            raise ValueError(f"the score {value} is not in 1..10")
        if not isinstance(answer.get("reason"), str):
            raise ValueError("no 'reason' that is a text")
    return bool(value) if kinds is bool else int(value)


def asks_again(form: JudgeFormat) -> bool:
    """Whether the benchmark asks once more after an answer that cannot be read."""
    return form is not JudgeFormat.CHECKLIST


def counts_as_not_usable(form: JudgeFormat) -> bool:
    """Whether a judgement that failed counts against the response in the benchmark."""
    return form is JudgeFormat.CHECKLIST


def _criteria(criterion: Criterion) -> dict[str, Any]:
    """One entry of WritingBench's checklist."""
    title = {"name": criterion.params["title"]} if "title" in criterion.params else {}
    described = {"criteria_description": criterion.description}
    return {**title, **described, **criterion.params.get("bands", {})}


def _category(criterion: Criterion) -> str:
    return str(criterion.params.get("category", ""))


def _names(text: str) -> set[str]:
    return set(_PLACEHOLDER.findall(text))
