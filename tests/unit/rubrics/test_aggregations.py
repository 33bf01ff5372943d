"""Rewards of rubrics that a judge grades, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.select import select_experiences
from herl_megatron.rubrics.aggregations import RULES, graded_result
from herl_megatron.rubrics.judge.formats import (
    BANDS,
    CHECKLIST,
    IMPLICIT,
    POINTS,
    STATEMENTS,
    JudgeFormat,
)
from herl_megatron.rubrics.rubric import judge_format, score_response, validate_rubric
from herl_megatron.types import (
    Aggregation,
    Criterion,
    CriterionResult,
    Polarity,
    Rubric,
    Scored,
    Unscored,
    Verdict,
)


def statement(name: str, *, weight: float = 1.0, category: str = "") -> Criterion:
    polarity: Polarity = "negative" if name.startswith("n") else "positive"
    params = {"category": category} if category else {}
    return Criterion(
        name, "judge", params=params, description=name, weight=weight, polarity=polarity
    )


def said(name: str, holds: bool) -> CriterionResult:
    return CriterionResult(name, Verdict.FOLLOWED if holds else Verdict.NOT_FOLLOWED)


def scored(rubric: Rubric, results: list[CriterionResult]) -> Scored:
    validate_rubric(rubric)
    score = score_response(rubric, results)
    assert isinstance(score, Scored)
    return score


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("explicit", STATEMENTS),
        ("all_or_nothing", STATEMENTS),
        ("rar", STATEMENTS),
        ("herl_reference", STATEMENTS),
        ("healthbench", POINTS),
        ("writingbench", BANDS),
        ("implicit", IMPLICIT),
        ("llmeval_med", CHECKLIST),
    ],
)
def test_what_the_judge_is_asked(aggregation: Aggregation, expected: JudgeFormat) -> None:
    assert judge_format(Rubric((statement("a"),), aggregation)) is expected


def test_every_aggregation_has_a_rule() -> None:
    assert set(RULES) == set(Aggregation.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("form", "grade", "expected", "verdict"),
    [
        (BANDS, 1, 0.1, Verdict.NOT_FOLLOWED),
        (BANDS, 8, 0.8, Verdict.NOT_FOLLOWED),
        (BANDS, 9, 0.9, Verdict.FOLLOWED),
        (IMPLICIT, 10, 1.0, Verdict.FOLLOWED),
        (CHECKLIST, 3, 0.6, Verdict.NOT_FOLLOWED),
        (CHECKLIST, 4, 0.8, Verdict.FOLLOWED),
    ],
)
def test_grades(form: JudgeFormat, grade: int, expected: float, verdict: Verdict) -> None:
    result = graded_result("a", form, grade)
    assert result.grade == pytest.approx(expected, abs=1e-12) and result.verdict == verdict


@pytest.mark.parametrize(("form", "grade"), [(BANDS, 0), (CHECKLIST, 6)])
def test_a_grade_off_the_scale_is_a_bug_of_the_caller(form: JudgeFormat, grade: int) -> None:
    with pytest.raises(AssertionError, match=f"{grade} is not in 1"):
        graded_result("a", form, grade)


def test_rar_weighs_by_category_and_not_by_the_datas_weights() -> None:
    criteria = (
        statement("e", weight=5, category="Essential"),
        statement("i", weight=4, category="Important"),
        statement("o", weight=2, category="Optional"),
        statement("n", weight=2, category="Pitfall"),  # true of the response is bad
        statement("p", weight=1, category="Pitfall"),  # worded as its avoidance: true is good
    )
    results = [said("e", True), said("i", False), said("o", True), said("n", True), said("p", True)]
    score = scored(Rubric(criteria, "rar"), results)
    # (1.0 + 0.3 + 0.9) / (1.0 + 0.7 + 0.3 + 0.9 + 0.9)
    assert score.reward == pytest.approx(2.2 / 3.8, abs=1e-12)
    assert (score.satisfied, score.unmet) == (("e", "o", "p"), ("i", "n"))


def test_writingbench_is_the_mean_grade() -> None:
    criteria = tuple(statement(name) for name in "abcde")
    grades = dict(zip("abcde", (7, 9, 10, 4, 8), strict=True))
    results = [graded_result(name, BANDS, grade) for name, grade in grades.items()]
    score = scored(Rubric(criteria, "writingbench"), results)
    assert score.reward == pytest.approx(38 / 50, abs=1e-12)
    assert (score.satisfied, score.unmet) == (("b", "c"), ("a", "d", "e"))


def test_writingbench_takes_a_rule_as_a_grade_of_all_or_nothing() -> None:
    comma = Criterion("r", "rule", check="ifeval/punctuation:no_comma", weight=2)
    rubric = Rubric((statement("a", weight=3), comma), "writingbench")
    grade = graded_result("a", BANDS, 6)
    # (3 * 0.6 + 2 * 1) / 5 and (3 * 0.6 + 0) / 5
    assert scored(rubric, [grade, said("r", True)]).reward == pytest.approx(3.8 / 5, abs=1e-12)
    assert scored(rubric, [grade, said("r", False)]).reward == pytest.approx(1.8 / 5, abs=1e-12)


@pytest.mark.parametrize(
    ("aggregation", "form", "grade", "reward", "satisfied"),
    [
        ("implicit", IMPLICIT, 7, 0.7, False),
        ("implicit", IMPLICIT, 9, 0.9, True),
        ("llmeval_med", CHECKLIST, 3, 0.6, False),
        ("llmeval_med", CHECKLIST, 5, 1.0, True),
    ],
)
def test_one_grade_is_the_reward_and_stands_for_the_whole_rubric(
    aggregation: Aggregation, form: JudgeFormat, grade: int, reward: float, satisfied: bool
) -> None:
    rubric = Rubric((statement("a", weight=5), statement("b")), aggregation)
    score = scored(rubric, [graded_result(name, form, grade) for name in "ab"])
    assert score.reward == pytest.approx(reward, abs=1e-12)
    everything, nothing = ("a", "b"), ()
    expected = (everything, nothing) if satisfied else (nothing, everything)
    assert (score.satisfied, score.unmet) == expected


def test_one_grade_counts_a_pitfall_with_the_rest() -> None:
    """The judge saw that it is a pitfall, so the grade has its polarity already."""
    rubric = Rubric((statement("a"), statement("n")), "implicit")
    high = scored(rubric, [graded_result(name, IMPLICIT, 10) for name in "an"])
    low = scored(rubric, [graded_result(name, IMPLICIT, 2) for name in "an"])
    assert (high.satisfied, high.unmet) == (("a", "n"), ())
    assert (low.satisfied, low.unmet) == ((), ("a", "n"))


def test_a_grade_that_is_missing_leaves_the_response_unscored() -> None:
    failed = CriterionResult("a", Verdict.UNVERIFIABLE, "judge: deadline exceeded")
    score = score_response(Rubric((statement("a"),), "implicit"), [failed])
    assert score == Unscored("criterion a: judge: deadline exceeded", (failed,))


def test_full_marks_need_no_hindsight_and_high_marks_leave_nothing_to_fix() -> None:
    rubric = Rubric((statement("a"), statement("b")), "writingbench")

    def group(*grades: tuple[int, int]) -> list[Scored]:
        return [
            scored(
                rubric,
                [graded_result(n, BANDS, g) for n, g in zip("ab", pair, strict=True)],
            )
            for pair in grades
        ]

    config = HindsightConfig(select="all_failed")
    assert select_experiences(group((10, 10), (3, 3)), config, 0) == ()
    # Both below the threshold of 1.0; (9, 9) misses no criterion, so only (8, 10) can be told what.
    assert select_experiences(group((9, 9), (8, 10), (9, 10)), config, 0) == (1,)
    lower = HindsightConfig(select="all_failed", threshold=0.9)
    assert select_experiences(group((9, 9), (8, 10)), lower, 0) == ()
