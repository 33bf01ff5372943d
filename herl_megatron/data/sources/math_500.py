"""MATH-500: problems whose final answer is compared as mathematics (`math/answer`)."""

from __future__ import annotations

from herl_megatron.data.sources.common import (
    Converted,
    Options,
    SourceRow,
    optional_text,
    prompt_key,
    rest_of,
    text_of,
)
from herl_megatron.types import Criterion, Message, Prompt, Rubric

BOXED = "Reason step by step, and give the final answer in \\boxed{}."
"""Added to every problem: it is where the check looks for the answer."""


def convert_math_500(row: SourceRow, options: Options) -> Converted:
    """MATH-500: problem, solution, answer, subject, level, unique_id; subject and level are kept
    under `extra`, the solution is the reference answer."""
    fields = row.fields
    problem = text_of(fields, "problem")
    message = Message("user", f"{problem.strip()}\n\n{BOXED}")
    right = Criterion("c1", "rule", "math/answer", {"answer": text_of(fields, "answer").strip()})
    prompt = Prompt(
        id=f"math_500-{optional_text(fields, 'unique_id') or prompt_key([message])[:16]}",
        messages=(message,),
        rubric=Rubric((right,), options.aggregation or "explicit"),
        source="math_500",
        reference_answer=optional_text(fields, "solution"),
        extra=rest_of(fields, ("problem", "solution", "answer", "unique_id")),
    )
    return Converted(prompt)
