"""MulDimIF: constraints as text under two labels; the checks read the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from herl_megatron.data.sources.common import (
    Converted,
    Options,
    RejectedRow,
    SourceRow,
    list_of,
    messages_of,
    rest_of,
    rule_problem,
    text_of,
)
from herl_megatron.types import Criterion, Prompt, Rubric

NOTHING_TO_READ = "rule text without a readable requirement: unverifiable"


def convert_muldimif(row: SourceRow, options: Options) -> Converted:
    """MulDimIF: id or key, conversations (or prompt), constraints, constraint_pattern, difficulty.

    A text that the rules cannot read stays in the rubric: it is unverifiable for every response
    and left out of the reward, and the report counts it. A row with nothing else is rejected.
    With `options.benchmark` every text has the benchmark's verdict, and no row is rejected for it.
    """
    fields = row.fields
    asked = "prompt" if fields.get("prompt") else "conversations"
    constraints = list_of(fields.get("constraints"), "constraints")
    criteria = constraint_criteria(constraints, benchmark=options.benchmark)
    problems = [rule_problem(criterion) for criterion in criteria]
    if all(problems):
        raise RejectedRow("no criterion can be verified", "; ".join(problems))
    prompt = Prompt(
        id=f"muldimif-{text_of(fields, 'id', 'key')}",
        messages=messages_of(fields.get(asked), asked),
        rubric=Rubric(criteria, options.aggregation or "explicit"),
        source="muldimif",
        extra=rest_of(fields, ("id", "key", "prompt", "conversations", "constraints")),
    )
    return Converted(prompt, (NOTHING_TO_READ,) * sum(map(bool, problems)))


def constraint_criteria(
    constraints: Sequence[Any], *, benchmark: bool = False
) -> tuple[Criterion, ...]:
    """One rule criterion per `[first label, second label, text]`.

    benchmark: a text without a readable requirement gets the benchmark's verdict.
    """
    criteria = []
    for number, item in enumerate(constraints, start=1):
        parts = list_of(item, f"constraints[{number - 1}]")
        if len(parts) != 3 or not all(isinstance(part, str) for part in parts):
            raise RejectedRow(
                "malformed constraint",
                f"constraints[{number - 1}] is {parts!r:.80}, not [label, label, text]",
            )
        first, second, text = parts
        params = {"text": text} | ({"benchmark": True} if benchmark else {})
        criteria.append(Criterion(f"c{number}", "rule", f"muldimif/{first}/{second}", params))
    return tuple(criteria)
