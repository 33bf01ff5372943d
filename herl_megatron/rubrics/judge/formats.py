"""The judge's formats: what it is asked about a response and what it answers, one object each.

All that belongs to one format is in its object, and everybody else asks the format. An aggregation
names the format whose answers it counts (`rubrics.aggregations.RULES`), so a new format is an
object here and its name there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from herl_megatron.rubrics.judge.guard import neutralise
from herl_megatron.rubrics.judge.wording import TEMPLATE, one_line
from herl_megatron.types import Criterion

_T = TypeVar("_T", bool, int)


@dataclass(frozen=True)
class Grading:
    """A whole grade from 1 to `top`, in place of verdicts.

    satisfied_from: from this grade on a criterion counts as satisfied.
    task: tells the judge what the grade is about, given the criteria of one request.
    """

    top: int
    satisfied_from: int
    task: Callable[[Sequence[Criterion]], str]


@dataclass(frozen=True)
class BenchmarkGrader:
    """How a benchmark's own grader asks and answers (the key `judge.grader_prompt`).

    placeholder: name of what its prompt shows of a criterion, as <<name>>.
    shown: the text in its place.
    needed: whether a prompt without the placeholder would not say what is asked.
    read: verdict or grade of an answer; a ValueError says why it has none.
    asks_again: whether the benchmark asks once more after an answer that cannot be read.
    failed_grade: of a response whose judgement failed; None leaves it unscored.
    """

    placeholder: str
    shown: Callable[[Criterion], str]
    read: Callable[[str], bool | int]
    needed: bool = True
    asks_again: bool = True
    failed_grade: int | None = None


@dataclass(frozen=True)
class JudgeFormat:
    """One format. Guards, keys, schema and reading of our own questions are the same for all.

    name: part of the key of every cached judgement, so no two have one and it never changes.
    one_by_one: a request per criterion; else one request has all of them.
    grading: None where the judge says of each criterion whether it is true.
    takes_negative: whether a criterion may count against the response.
    template: our user message, see `judge.wording`.
    grader: None where no benchmark asks so.
    """

    name: str
    one_by_one: bool = False
    grading: Grading | None = None
    takes_negative: bool = True
    template: str = TEMPLATE
    grader: BenchmarkGrader | None = None

    @property
    def grade_to(self) -> int:
        """The top of the grade's scale, 0 without a grade."""
        return self.grading.top if self.grading else 0

    @property
    def one_grade(self) -> bool:
        """Whether a single grade is about the rubric as a whole, which does not say what fails."""
        return self.grading is not None and not self.one_by_one

    def split(self, criteria: Sequence[Criterion]) -> list[tuple[Criterion, ...]]:
        """The criteria of each request about one response."""
        return [(c,) for c in criteria] if self.one_by_one else [tuple(criteria)]

    def calls(self, criteria: int) -> int:
        """How many requests ask about so many criteria of one response."""
        return criteria if self.one_by_one else int(criteria > 0)


STATEMENTS = JudgeFormat("statements")
"""One call for all statements: is each true of the response?"""


def _with_points(criterion: Criterion) -> str:
    """HealthBench: "[points] statement"."""
    points = criterion.weight if criterion.polarity == "positive" else -criterion.weight
    return f"[{points:g}] {criterion.description}"


def _read_criteria_met(text: str) -> bool:
    return _field(_parsed(text), "criteria_met", bool)


POINTS = JudgeFormat(
    "points",
    one_by_one=True,
    grader=BenchmarkGrader("rubric_item", _with_points, _read_criteria_met),
)
"""One call per statement: is it true of the response (HealthBench)?"""


def _bands_task(criteria: Sequence[Criterion]) -> str:
    (criterion,) = criteria
    title, bands = criterion.params.get("title"), criterion.params.get("bands", {})
    lines = "\n".join(f"{band}: {one_line(str(text))}" for band, text in bands.items())
    return (
        "Grade how well the response meets this one criterion, from 1 to 10:\n"
        + (f"{one_line(str(title))}: " if title else "")
        + one_line(criterion.description)
        + (f"\nBands:\n{lines}" if bands else "")
    )


def _checklist_entry(criterion: Criterion) -> str:
    """WritingBench: name, description and bands, as Python prints a dict."""
    title = {"name": criterion.params["title"]} if "title" in criterion.params else {}
    described = {"criteria_description": criterion.description}
    return str({**title, **described, **criterion.params.get("bands", {})})


def _read_score(text: str) -> int:
    answer = _parsed(text)
    score = _field(answer, "score", int)
    if not 1 <= score <= 10:
        raise ValueError(f"the score {score} is not in 1..10")
    if not isinstance(answer.get("reason"), str):
        raise ValueError("no 'reason' that is a text")
    return score


BANDS = JudgeFormat(
    "bands",
    one_by_one=True,
    grading=Grading(top=10, satisfied_from=9, task=_bands_task),  # WritingBench's highest band
    takes_negative=False,
    grader=BenchmarkGrader("criteria", _checklist_entry, _read_score),
)
"""One call per criterion: a grade from 1 to 10 by bands (WritingBench)."""


def _implicit_task(criteria: Sequence[Criterion]) -> str:
    lines = "\n".join(f"- {_importance(c)}: {one_line(c.description)}" for c in criteria)
    return (
        "Grade the response as a whole, from 1 (fails) to 10 (meets everything), by these criteria"
        f" and their importance:\n{lines}"
    )


def _importance(criterion: Criterion) -> str:
    weight = str(criterion.params.get("category", f"weight {criterion.weight:g}"))
    if criterion.polarity == "negative":
        return f"{weight}, counts against the response if true"
    return weight


IMPLICIT = JudgeFormat("implicit", grading=Grading(top=10, satisfied_from=9, task=_implicit_task))
"""One call, one grade from 1 to 10 for the whole rubric (Rubrics as Rewards)."""

_MARK = re.compile(r"\[(\d+)\]")
_TEMPLATE_WITH_REFERENCE = """The conversation that is answered:
{conversation}

A reference answer by an expert; a response may differ from it and still be right:
{reference}

The response to judge:
{response}

{statements}
"""


def _checklist_task(criteria: Sequence[Criterion]) -> str:
    lines = "\n".join(neutralise(c.description) for c in criteria)
    return (
        "Grade the response from 1 (useless or harmful) to 5 (right and complete) against the"
        f" reference answer and this checklist:\n{lines}"
    )


def _checklist(criterion: Criterion) -> str:
    """LLMEval-Med: the checklist, empty for categories without one."""
    return "" if criterion.params.get("no_checklist") else criterion.description


def _read_mark(text: str) -> int:
    mark = _MARK.search(text)
    if mark is None or not 1 <= int(mark[1]) <= 5:
        raise ValueError("no grade from [1] to [5]")
    return int(mark[1])


CHECKLIST = JudgeFormat(
    "checklist",
    grading=Grading(top=5, satisfied_from=4, task=_checklist_task),  # 4 and 5 are called usable
    takes_negative=False,
    template=_TEMPLATE_WITH_REFERENCE,
    grader=BenchmarkGrader(
        "checklist",
        _checklist,
        _read_mark,
        needed=False,  # categories without a checklist do not show it
        asks_again=False,
        failed_grade=1,  # LLMEval-Med counts it as not usable
    ),
)
"""One call, one grade from 1 to 5 against a reference answer and a checklist (LLMEval-Med)."""

_FENCE = re.compile(r"\A```(?:json)?\s*|\s*```\Z")


def _parsed(text: str) -> Any:
    try:
        return json.loads(_FENCE.sub("", text.strip()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def _field(answer: Any, key: str, kind: type[_T]) -> _T:
    """The value of a grader's key, which is of exactly this type (to Python, true is a number)."""
    value: Any = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, kind) or type(value) is not kind:
        raise ValueError(f"no {key!r} that is a {'truth value' if kind is bool else 'number'}")
    return value
