"""Each benchmark's metrics from verdicts and grades, worked out by hand."""

from __future__ import annotations

from math import comb
from typing import Any, cast

import pytest

from herl_megatron.benchmarks.answered import Answered
from herl_megatron.benchmarks.constraints_met import category
from herl_megatron.benchmarks.known_benchmarks import (
    BENCHMARKS,
    headlines,
    shortcomings,
    summarize,
    wants_loose,
)
from herl_megatron.benchmarks.measured import BenchmarkNumbers, Part, bootstrap_interval
from herl_megatron.types import Criterion
from tests.unit.benchmarks.answers import UNSCORED, answered, graded, prompt, rules


def only(name: str, *given: Answered) -> BenchmarkNumbers:
    (found,) = summarize(given).items()
    assert found[0] == name
    return found[1]


def part(value: float, n: int) -> Any:
    """Equal to a part of nearly that value."""
    return Part(cast(float, pytest.approx(value)), n)


def test_four_accuracies_of_prompts_and_instructions() -> None:
    """Strict: prompt a 1 of 2 responses, b none, c all. Instructions: a 2+1 of 4, b 0 of 1, c 1 of
    1. Loose: b follows, too, and of a's second response the verdict failed."""
    a = prompt("a", rules("x", "y"), source="ifeval")
    b, c = (prompt(name, rules("x"), source="ifeval/part") for name in "bc")
    numbers = only(
        "ifeval",
        answered(a, "++", "+-", loose=["++", "+!"]),
        answered(b, "-", loose=["+"]),
        answered(c, "+", "", loose=["+", ""]),
    )
    assert numbers.metrics == pytest.approx(
        {"prompt_strict": 1.5 / 3, "instruction_strict": 4 / 6,
         "prompt_loose": 1.0, "instruction_loose": 4 / 4}
    )  # fmt: skip
    assert (numbers.prompts, numbers.responses, numbers.unscored) == (3, 5, 1)
    assert numbers.headline == "prompt_strict"
    assert numbers.notes == ("3 prompts, the whole set has 541",)
    assert headlines({"ifeval": numbers}) == {"eval/benchmark/ifeval": pytest.approx(0.5)}


def test_what_was_not_asked_or_cannot_be_verified_is_in_no_number() -> None:
    a = prompt("a", rules("x", "y"), source="ifbench")
    numbers = only("ifbench", answered(a, "?+", "?-"))
    assert numbers.metrics == {"prompt_strict": 0.5, "instruction_strict": 0.5}
    assert numbers.notes[1] == "2 responses were scored without criteria that nothing could verify"
    with_loose = only("ifbench", answered(a, "?-", loose=["?+"]))
    assert with_loose.metrics["prompt_loose"] == with_loose.metrics["instruction_loose"] == 1.0


def test_no_score_is_no_number() -> None:
    a, b = (prompt(name, rules("x"), source="gpqa") for name in "ab")
    numbers = only("gpqa", answered(a, ""))
    assert (numbers.metrics, numbers.interval, numbers.unscored) == ({}, {}, 1)
    assert "no response has a score" in numbers.notes and headlines({"gpqa": numbers}) == {}
    half = only("gpqa", answered(a, "", ""), answered(b, "+"))
    assert half.metrics == {"accuracy": 1.0} and half.unscored == 2
    assert "1 prompts have no scored response" in half.notes


def test_muldimif_by_category_pattern_and_difficulty() -> None:
    """Prompt a misses its second Length constraint, b meets all; both have Content."""
    a = prompt(
        "a", rules("muldimif/Length/Words", "muldimif/Sentences/At most",
                   "muldimif/Content/Keywords: Must include"),
        source="muldimif", extra={"constraint_pattern": "Listing", "difficulty": "Level 2"},
    )  # fmt: skip
    b = prompt(
        "b", rules("muldimif/Citations/In-text", "muldimif/Table/Row limit"),
        source="muldimif", extra={"constraint_pattern": "Example", "difficulty": "Level 2"},
    )  # fmt: skip
    numbers = only("muldimif", answered(a, "+-+"), answered(b, "++"))
    assert numbers.metrics == {"overall": 0.5, "constraint": 4 / 5}
    assert numbers.parts == {
        "category": {"Content": Part(1.0, 2), "Format": Part(1.0, 1), "Length": Part(0.0, 1)},
        "pattern": {"Example": Part(1.0, 1), "Listing": Part(0.0, 1)},
        "difficulty": {"Level 2": Part(0.5, 2)},
    }
    assert numbers.notes == ("2 prompts, the whole set has 1,200",)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("Format/Markdown: Heading levels", "Format"), ("Format/Word Count", "Length"),
        ("Content/Length", "Length"), ("Format/Text", "Content"), ("Format/Blurb", "Length"),
        ("References/Format", "Content"), ("XML/Number of attributes", "Format"),
        ("Language/English: Capitalized", "Language"), ("Paragraphs/At most", "Length"),
    ],
)  # fmt: skip
def test_labels_are_of_the_benchmarks_four_categories(labels: str, expected: str) -> None:
    assert category(labels) == expected


def judged(count: int = 1, **params: str) -> list[Criterion]:
    return [Criterion(f"c{n}", "judge", description="x", params=params) for n in range(count)]


def test_writing_is_the_mean_grade_of_criteria_then_queries() -> None:
    """a: (5 + 7) / 2 = 6 and 8 of 10, 7 in the mean; b: 4."""
    a, b = (
        prompt(name, judged(2), source="writingbench", aggregation="writingbench",
               extra={"domain1": "Law", "lang": lang, "index": 1})
        for name, lang in (("a", "en"), ("b", "zh"))
    )  # fmt: skip
    scores = (graded(a, 0.5, 0.7, satisfied_from=0.9), graded(a, 0.8, 0.8, satisfied_from=0.9))
    numbers = only(
        "writingbench",
        Answered(a, scores),
        Answered(b, (graded(b, 0.3, 0.5, satisfied_from=0.9), UNSCORED)),
    )
    assert numbers.metrics == {"score": pytest.approx((0.7 + 0.4) / 2)}
    assert numbers.parts["domain1"] == {"Law": part(0.55, 2)}
    assert numbers.parts["lang"]["zh"] == part(0.4, 1)
    assert "domain2" not in numbers.parts


def test_usable_is_a_mean_grade_from_4_of_5() -> None:
    """Grades 3.67, 4 and 5 of 5: two are usable, whatever their categories."""
    rows = [
        prompt(str(n), judged(category=name), source="llmeval_med", aggregation="llmeval_med")
        for n, name in enumerate(("Ethics", "Ethics", "Text"))
    ]
    grades = (11 / 15, 0.8, 1.0)
    numbers = only(
        "llmeval_med",
        *(Answered(row, (graded(row, g, satisfied_from=0.8),))
          for row, g in zip(rows, grades, strict=True)),
    )  # fmt: skip
    assert numbers.metrics == pytest.approx({"usability": 2 / 3, "mean": sum(grades) / 3})
    assert numbers.parts["category"] == {"Ethics": Part(0.5, 2), "Text": Part(1.0, 1)}


def points(name: str, *, theme: str) -> Answered:
    """Worth +5 (accuracy), +3 (completeness) and -4 (accuracy)."""
    criteria = [
        Criterion("c0", "judge", description="x", weight=5),
        Criterion("c1", "judge", description="x", weight=3),
        Criterion("c2", "judge", description="x", weight=4, polarity="negative"),
    ]
    tags = {
        "c0": ["axis:accuracy", "level:x"],
        "c1": ["axis:completeness"],
        "c2": ["axis:accuracy"],
    }
    row = prompt(
        name, criteria, source="healthbench_500", aggregation="healthbench",
        extra={"tags": tags, "example_tags": [f"theme:{theme}", "physician:x"]},
    )  # fmt: skip
    return answered(row, {"good": "++-", "bad": "--+", "mixed": "+-+"}[name])


def test_points_may_be_below_zero_and_their_mean_may_not() -> None:
    """8/8, -4/8 and (5 - 4)/8; of accuracy alone 5/5, -4/5 and 1/5."""
    good, bad = points("good", theme="hedging"), points("bad", theme="context")
    mixed = points("mixed", theme="context")
    numbers = only("healthbench_500", good, bad, mixed)
    assert numbers.metrics["score"] == pytest.approx((1 - 0.5 + 0.125) / 3)
    assert numbers.parts["theme"] == {
        "context": Part(0.0, 2), "hedging": Part(1.0, 1),
    }  # fmt: skip
    assert numbers.parts["axis"] == {
        "accuracy": part(0.4 / 3, 3), "completeness": part(1 / 3, 3),
    }  # fmt: skip
    assert only("healthbench_500", bad).metrics == {"score": 0.0, "unclipped": -0.5}
    low, high = only("healthbench_500", bad, mixed).interval["score"]
    assert (low, high) == (0.0, 0.125)


def test_another_rubric_gives_no_number() -> None:
    row = prompt("a", judged(), source="healthbench", aggregation="explicit")
    numbers = only("healthbench", answered(row, "+"))
    assert (
        numbers.metrics == {}
        and "'explicit' ('a'), and the metric is about 'healthbench'" in (numbers.notes[0])
    )
    assert shortcomings([row])["healthbench"][0] == numbers.notes[0]


def test_right_answers_by_subject_and_level() -> None:
    rows = [
        prompt(str(n), rules("x"), source="math_500", extra={"subject": "Algebra", "level": level})
        for n, level in enumerate((1, 5, 5))
    ]
    given = zip(rows, ("+", "-", "+"), strict=True)
    numbers = only("math_500", *(answered(row, mark) for row, mark in given))
    assert numbers.metrics == {"accuracy": pytest.approx(2 / 3)}
    assert numbers.parts == {
        "subject": {"Algebra": part(2 / 3, 3)},
        "level": {"1": Part(1.0, 1), "5": Part(0.5, 2)},
    }


def test_the_interval_is_that_of_a_binomial() -> None:
    """The mean of 20 prompts of which 8 are right, drawn anew: a binomial of 20 with 0.4, whose
    2.5 and 97.5 percentiles are the smallest k with that much probability up to k."""
    low, high = bootstrap_interval([1.0] * 8 + [0.0] * 12)
    chances = [comb(20, k) * 0.4**k * 0.6 ** (20 - k) for k in range(21)]
    exact = [
        next(k for k in range(21) if sum(chances[: k + 1]) >= share) / 20
        for share in (0.025, 0.975)
    ]
    assert abs(low - exact[0]) <= 0.05 and abs(high - exact[1]) <= 0.05
    assert bootstrap_interval([1.0] * 8 + [0.0] * 12) == (low, high)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_sources_that_are_no_benchmark_are_in_none() -> None:
    row = prompt("a", rules("x"), source="hir/ifeval")
    assert summarize([answered(row, "+")]) == {} and shortcomings([row]) == {}
    assert wants_loose(prompt("a", rules("x"), source="ifeval")) and not wants_loose(row)
    assert not wants_loose(prompt("a", [*rules("x"), *judged()], source="ifeval"))
    whole = [prompt(str(n), rules("x"), source="ifbench") for n in range(294)]
    assert shortcomings(whole) == {}


def test_every_benchmark_says_what_its_headline_is() -> None:
    """Each one's function gives the metric that the registry promises."""
    for name, benchmark in BENCHMARKS.items():
        criteria = judged() if benchmark.aggregation else rules("x")
        row = prompt("a", criteria, source=name, aggregation=benchmark.aggregation or "explicit")
        scores = (graded(row, 1.0, satisfied_from=0.8),) if benchmark.aggregation else None
        one = Answered(row, scores) if scores else answered(row, "+")
        numbers = only(name, one)
        assert numbers.metrics[numbers.headline] == 1.0 and numbers.as_json()["interval"]
