"""A benchmark's own grader: its prompt from a user's file, filled in for one request.

For numbers that compare with a benchmark's. HealthBench, WritingBench and LLMEval-Med grade with
prompts of their own (aggregations `healthbench`, `writingbench`, `llmeval_med`); these are in the
benchmarks' repositories, and a user names a file that holds one (`judge.grader_prompt`). How it is
answered, and what becomes of failures, is the format's (`formats.BenchmarkGrader`). The file is
sent as it stands but for placeholders, each of which may occur any number of times:

    <<conversation>>  all turns and the response, "role: text" with a blank line between
    <<query>>         the last user message
    <<response>>      the response
    <<reference>>     the reference answer
    <<NAME>>          the criterion, as the format shows it whose `placeholder` is NAME

A line `@@ system` begins the system message, `@@ user` the user message, and `@@ user NAME` that of
rows whose category is NAME (LLMEval-Med has five). A file without such lines is a user message.

Nothing guards such a question against a response that speaks to the grader: for measuring alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from herl_megatron.rubrics.aggregations import RULES
from herl_megatron.rubrics.judge.formats import BenchmarkGrader, JudgeFormat
from herl_megatron.rubrics.judge.units import Unit
from herl_megatron.types import Criterion, Message, Prompt

_SECTION = re.compile(r"^@@ (system|user)(?: +(\S.*?))? *$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"<<(\w+)>>")
_OF_ALL = {"conversation", "query", "response", "reference"}
"""Placeholders that are no format's."""


@dataclass(frozen=True)
class GraderPrompt:
    """A file's messages. users: by category, under "" that of all others."""

    users: Mapping[str, str]
    system: str = ""

    def problem(self, prompt: Prompt, form: JudgeFormat) -> str:
        """Why a row cannot be asked about with this file, or the empty string."""
        if form.grader is None:
            *some, last = (name for name, rule in RULES.items() if rule.judge_format.grader)
            return (
                f"a grader's prompt is for the aggregations {', '.join(some)} and {last}, not"
                f" {prompt.rubric.aggregation!r}"
            )
        categories = {_category(c) for c in prompt.rubric.criteria if c.kind == "judge"}
        for category in sorted(categories):
            if category not in self.users and "" not in self.users:
                return f"it has no `@@ user {category}` and no `@@ user` for all others"
            wanted = form.grader.placeholder
            if form.grader.needed and wanted not in _names(self.user(category)):
                return f"it has no <<{wanted}>>, which says what is asked"
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
        if unknown := sorted(_names(body) - _placeholders()):
            known = ", ".join(f"<<{name}>>" for name in sorted(_placeholders()))
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
    values = {
        "conversation": "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns),
        "query": next((m.content for m in reversed(unit.prompt.messages) if m.role == "user"), ""),
        "response": unit.response,
        "reference": unit.prompt.reference_answer or "",
    }
    values |= {each.placeholder: each.shown(criterion) for each in _graders()}

    def fill(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

    user = Message("user", fill(grader.user(_category(criterion))))
    return (Message("system", fill(grader.system)), user) if grader.system else (user,)


def _graders() -> list[BenchmarkGrader]:
    """Those of all formats: a file may show what any of them shows."""
    found = (rule.judge_format.grader for rule in RULES.values())
    return [grader for grader in found if grader is not None]


def _placeholders() -> set[str]:
    return _OF_ALL | {grader.placeholder for grader in _graders()}


def _category(criterion: Criterion) -> str:
    return str(criterion.params.get("category", ""))


def _names(text: str) -> set[str]:
    return set(_PLACEHOLDER.findall(text))
