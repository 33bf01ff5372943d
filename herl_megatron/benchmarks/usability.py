"""LLMEval-Med: the share of answers that a judge calls usable."""

from __future__ import annotations

from collections.abc import Sequence

from herl_megatron.benchmarks.answered import Answered, all_met, mean, per_prompt
from herl_megatron.benchmarks.measured import Measured, grouped, noted
from herl_megatron.types import Prompt, Scored


def usability(answered: Sequence[Answered]) -> Measured:
    """`usability` (the headline): share of questions whose mean grade, over `judge.samples`, is at
    least 4 of 5; every question weighs the same, whatever its category. `mean`: mean grade over its
    top, 5.

    Parts: `category`, usability within each of the five.
    """
    usable = per_prompt(answered, all_met)  # a grade satisfies from 4 on
    values = [value for _, value in usable]
    metrics = {"usability": mean(values)}
    if grades := [value for _, value in per_prompt(answered, _grade)]:
        metrics["mean"] = mean(grades)
    return Measured("usability", values, metrics, {"category": grouped(usable, _category)})


def _grade(_: Prompt, score: Scored) -> float | None:
    grades = [result.grade for result in score.results if result.grade is not None]
    return mean(grades) if grades else None


def _category(prompt: Prompt) -> list[str]:
    named = [c.params["category"] for c in prompt.rubric.criteria if "category" in c.params]
    return [str(named[0])] if named else noted(prompt, "category1")
