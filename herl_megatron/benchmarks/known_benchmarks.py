"""The benchmarks by name, and `summarize`: their numbers from scored responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from herl_megatron.benchmarks.answered import Answered
from herl_megatron.benchmarks.clipped_points import clipped_points
from herl_megatron.benchmarks.constraints_met import constraints_met
from herl_megatron.benchmarks.followed import four_accuracies
from herl_megatron.benchmarks.measured import BenchmarkNumbers, Measured, bootstrap_interval
from herl_megatron.benchmarks.right_answers import right_answers
from herl_megatron.benchmarks.usability import usability
from herl_megatron.benchmarks.writing_grades import writing_grades
from herl_megatron.types import Aggregation, Prompt


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    title: as tables show it. headline: the metric that they show. measure: from prompts that each
    have a scored response. sizes: prompts of the whole set; several where it was published in
    several sizes. aggregation: the rubric's, where the metric is about its rewards or grades and
    not about single verdicts. loose: whether it has loose verdicts.
    """

    title: str
    headline: str
    measure: Callable[[Sequence[Answered]], Measured]
    sizes: tuple[int, ...]
    aggregation: Aggregation | None = None
    loose: bool = False


BENCHMARKS: Mapping[str, Benchmark] = {
    "ifeval": Benchmark("IFEval", "prompt_strict", four_accuracies, (541,), loose=True),
    "ifbench": Benchmark("IFBench", "prompt_strict", four_accuracies, (294, 300), loose=True),
    "muldimif": Benchmark("MulDimIF", "overall", constraints_met, (1200,)),
    "writingbench": Benchmark(
        "WritingBench", "score", writing_grades, (1000, 1239), aggregation="writingbench"
    ),
    "llmeval_med": Benchmark(
        "LLMEval-Med", "usability", usability, (667,), aggregation="llmeval_med"
    ),
    "healthbench": Benchmark(
        "HealthBench", "score", clipped_points, (5000,), aggregation="healthbench"
    ),
    "healthbench_500": Benchmark(
        "HealthBench-500", "score", clipped_points, (500,), aggregation="healthbench"
    ),
    "math_500": Benchmark("MATH-500", "accuracy", right_answers, (500,)),
    "gpqa": Benchmark("GPQA", "accuracy", right_answers, (198, 448, 546)),
}
"""By the part of a row's `source` before the slash. GPQA: diamond, main, extended."""


def benchmark_of(prompt: Prompt) -> str:
    """The name of the benchmark that a row is of, or the empty string."""
    name = prompt.source.partition("/")[0]
    return name if name in BENCHMARKS else ""


def wants_loose(prompt: Prompt) -> bool:
    """Whether the row's benchmark has loose accuracies, and rules alone check it."""
    name = benchmark_of(prompt)
    by_rules = all(criterion.kind == "rule" for criterion in prompt.rubric.criteria)
    return bool(name) and BENCHMARKS[name].loose and by_rules


def summarize(answered: Iterable[Answered]) -> dict[str, BenchmarkNumbers]:
    """The numbers of each benchmark whose rows are there, by name, in the order of `BENCHMARKS`.

    Rows of other sources are in none. A response without a score is counted and in no mean. Where
    no response has a score, or a rubric is not the benchmark's own, there are no metrics, and
    `notes` says why.
    """
    found: dict[str, list[Answered]] = {}
    for one in answered:
        if name := benchmark_of(one.prompt):
            found.setdefault(name, []).append(one)
    return {name: _numbers(name, found[name]) for name in BENCHMARKS if name in found}


def headlines(numbers: Mapping[str, BenchmarkNumbers]) -> dict[str, float]:
    """`eval/benchmark/NAME`: the headline of each benchmark that has one."""
    return {
        f"eval/benchmark/{name}": one.metrics[one.headline]
        for name, one in numbers.items()
        if one.headline in one.metrics
    }


def shortcomings(prompts: Iterable[Prompt]) -> dict[str, list[str]]:
    """By benchmark, what keeps numbers on these rows from being the benchmark's own."""
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if name := benchmark_of(prompt):
            found.setdefault(name, []).append(prompt)
    problems = {name: [*_rubric_problems(name, rows), *_size_problems(name, rows)]
                for name, rows in found.items()}  # fmt: skip
    return {name: notes for name, notes in problems.items() if notes}


def _numbers(name: str, answered: Sequence[Answered]) -> BenchmarkNumbers:
    benchmark, prompts = BENCHMARKS[name], [one.prompt for one in answered]
    responses = sum(len(one.scores) for one in answered)
    scored = [one for one in answered if one.scored]
    unscored = responses - sum(len(one.scored) for one in scored)
    wrong = list(_rubric_problems(name, prompts))
    notes = [*wrong, *_size_problems(name, prompts), *_left_out(scored)]
    counts = (benchmark.headline, len(prompts), responses, unscored)
    if wrong or not scored:
        notes += [] if scored else ["no response has a score"]
        return BenchmarkNumbers(*counts, notes=tuple(notes))
    if len(scored) < len(prompts):
        notes.append(f"{len(prompts) - len(scored)} prompts have no scored response")
    measured = benchmark.measure(scored)
    assert measured.headline == benchmark.headline, f"{name}: two headlines"
    low, high = bootstrap_interval(measured.per_prompt, clipped=measured.clipped)
    return BenchmarkNumbers(
        *counts,
        metrics=dict(measured.metrics),
        interval={benchmark.headline: (low, high)},
        parts={kind: dict(parts) for kind, parts in measured.parts.items() if parts},
        notes=tuple(notes),
    )


def _rubric_problems(name: str, prompts: Sequence[Prompt]) -> Iterable[str]:
    wanted = BENCHMARKS[name].aggregation
    others = [p for p in prompts if wanted not in (None, p.rubric.aggregation)]
    if others:
        yield (
            f"{len(others)} of {len(prompts)} rows have the aggregation"
            f" {others[0].rubric.aggregation!r} ({others[0].id!r}), and the metric is about"
            f" {wanted!r}: prepare them without --aggregation"
        )


def _size_problems(name: str, prompts: Sequence[Prompt]) -> Iterable[str]:
    sizes = BENCHMARKS[name].sizes
    if len(prompts) not in sizes:
        whole = " or ".join(f"{size:,}" for size in sizes)
        yield f"{len(prompts):,} prompts, the whole set has {whole}"


def _left_out(answered: Sequence[Answered]) -> Iterable[str]:
    count = sum(bool(score.left_out) for one in answered for score in one.scored)
    if count:
        yield f"{count} responses were scored without criteria that nothing could verify"
