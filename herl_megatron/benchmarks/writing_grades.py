"""WritingBench: the mean grade of a judge, over a query's criteria and then over queries."""

from __future__ import annotations

from collections.abc import Sequence

from herl_megatron.benchmarks.answered import Answered, mean, per_prompt
from herl_megatron.benchmarks.measured import Measured, grouped, noted
from herl_megatron.types import Prompt, Scored


def writing_grades(answered: Sequence[Answered]) -> Measured:
    """`score` (the headline): mean grade over its top, 10. The benchmark shows grades from 1 to 10,
    its leaderboard and tables ten times that: 0.57 here is 5.7 and 57.0.

    Parts: `domain1` (6 of them), `domain2` (100) and `lang`.
    """
    queries = per_prompt(answered, _grade)
    parts = {
        kind: grouped(queries, lambda prompt, key=kind: noted(prompt, key))  # type: ignore[misc]
        for kind in ("domain1", "domain2", "lang")
    }
    values = [value for _, value in queries]
    return Measured("score", values, {"score": mean(values)}, parts)


def _grade(_: Prompt, score: Scored) -> float | None:
    grades = [result.grade for result in score.results if result.grade is not None]
    return mean(grades) if grades else None
