"""Checks that return numbers: every reward worked out by hand, and no number that is none."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.select import select_experiences
from herl_megatron.rubrics.checks import registry
from herl_megatron.rubrics.checks.isolated import modules
from herl_megatron.rubrics.checks.isolated.wire import Reply, Said, pack_reply
from herl_megatron.rubrics.credit import FULL_CREDIT, measured_result
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.rubrics.worker import score_texts
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

SOURCE = """
import math
from herl_megatron.rubrics.checks.registry import register

@register("n/says", description="Say {what}.")
def says(response: str, *, what: str) -> float:
    if what == "length":
        return min(1, len(response) / 10)
    return eval(what)

@register("n/either", description="x")
def either(response: str, *, what: str) -> "bool | float":
    return eval(what)

@register("n/plain", description="x")
def plain(response: str, *, what: str) -> bool:
    return eval(what)

@register("n/untold", description="x")
def untold(response: str, *, what: str):
    return eval(what)
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is its own, and its processes end with it."""
    monkeypatch.setattr(registry, "_CHECKS", dict(registry._CHECKS))
    yield
    registry.end_user_processes()


@pytest.fixture
def numbers(tmp_path: Path) -> None:
    """The checks above, loaded as a user's."""
    (tmp_path / "numbers_of_a_test.py").write_text(SOURCE, encoding="utf-8")
    registry.load_check_modules(["numbers_of_a_test"], folder=str(tmp_path))


def run(check: str, what: str, response: str = "x") -> CriterionResult:
    return registry.run_check(Criterion("c", "rule", check, {"what": what}), response, timeout_s=5)


def rule(name: str, weight: float, *, category: str = "") -> Criterion:
    polarity: Polarity = "negative" if name.startswith("n") else "positive"
    return Criterion(name, "rule", "x", {"category": category}, "", weight, polarity)


HALF, MISSED, BAD = rule("half", 3), rule("missed", 1), rule("n", 2)
RESULTS = (
    measured_result("half", 0.5),
    CriterionResult("missed", Verdict.NOT_FOLLOWED),
    measured_result("n", 0.25),
)


@pytest.mark.parametrize(
    ("aggregation", "reward"),
    [
        ("explicit", (3 * 0.5 + 1 * 0 + 2 * 0.75) / 6),  # a quarter true is three quarters avoided
        ("all_or_nothing", 0.0),
        ("herl_reference", 3 * 0.5 / 4),
        ("healthbench", (3 * 0.5 - 2 * 0.25) / 4),
        ("writingbench", (3 * 0.5 + 2 * 0.75) / 6),
    ],
)
def test_a_number_enters_where_a_verdict_is_one_or_zero(
    aggregation: Aggregation, reward: float
) -> None:
    score = score_response(Rubric((HALF, MISSED, BAD), aggregation), RESULTS)
    assert isinstance(score, Scored) and score.reward == reward
    assert score.satisfied == () and score.unmet == ("half", "missed", "n")


def test_rar_weighs_a_number_by_its_category() -> None:
    rubric = Rubric((rule("a", 1, category="Essential"), rule("n", 1, category="Pitfall")), "rar")
    score = score_response(rubric, [measured_result("a", 0.5), measured_result("n", 0.0)])
    assert isinstance(score, Scored) and score.reward == (1.0 * 0.5 + 0.9 * 1.0) / 1.9
    assert score.satisfied == ("n",) and score.unmet == ("a",)


@pytest.mark.parametrize(
    ("value", "positive_is_met", "negative_is_met"),
    [
        (1.0, True, False),
        (FULL_CREDIT, True, False),
        (0.999998, False, False),
        (0.5, False, False),
        (2e-6, False, False),
        (5e-7, False, True),
        (0.0, False, True),
    ],
)
def test_only_full_credit_is_met(
    value: float, positive_is_met: bool, negative_is_met: bool
) -> None:
    for name, met in (("p", positive_is_met), ("n", negative_is_met)):
        whole = Rubric((rule(name, 1),), "all_or_nothing")
        score = score_response(whole, [measured_result(name, value)])
        assert isinstance(score, Scored)
        assert (score.satisfied, score.unmet) == (((name,), ()) if met else ((), (name,)))
        assert score.reward == float(met)


def test_the_better_of_two_partial_responses_becomes_the_draft() -> None:
    rubric = Rubric((HALF, MISSED))
    scores = [
        score_response(
            rubric,
            [measured_result("half", value), CriterionResult("missed", Verdict.FOLLOWED)],
        )
        for value in (0.25, 0.75)
    ]
    assert select_experiences(scores, HindsightConfig(), seed=0) == (1,)


def test_rewards_of_verdicts_are_what_they_were_to_the_last_bit() -> None:
    """Against the formulas as they stood before there were numbers."""
    rng = random.Random(7)
    for _ in range(500):
        criteria = [rule(f"{rng.choice('pn')}{i}", rng.uniform(0.1, 9)) for i in range(9)]
        criteria.append(rule("p", 1.5))
        true = [rng.random() < 0.5 for _ in criteria]
        good = [t == (c.polarity == "positive") for c, t in zip(criteria, true, strict=True)]
        pairs = list(zip(criteria, true, good, strict=True))
        results = [
            CriterionResult(c.id, Verdict.FOLLOWED if t else Verdict.NOT_FOLLOWED)
            for c, t, _ in pairs
        ]
        positive = [(c, g) for c, _, g in pairs if c.polarity == "positive"]
        signed = [c.weight if c.polarity == "positive" else -c.weight for c, t, _ in pairs if t]
        expected: dict[Aggregation, float] = {
            "explicit": sum(c.weight for c, _, g in pairs if g) / sum(c.weight for c in criteria),
            "all_or_nothing": float(all(good)),
            "healthbench": sum(signed) / sum(c.weight for c, _ in positive),
            "herl_reference": sum(c.weight for c, g in positive if g)
            / sum(c.weight for c, _ in positive),
        }
        for aggregation, reward in expected.items():
            score = score_response(Rubric(tuple(criteria), aggregation), results)
            assert isinstance(score, Scored)
            assert repr(score.reward) == repr(float(reward))


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    ("what", "grade"),
    [
        ("0.1 + 0.2", 0.1 + 0.2),
        ("1/3", 1 / 3),
        ("5e-324", 5e-324),
        ("0", 0.0),
        ("1", 1.0),
        ("True", 1.0),
        ("False", 0.0),
        ("-0.0", 0.0),
        ("__import__('numpy').float64(0.5)", 0.5),
    ],
)
def test_a_number_comes_out_of_the_child_to_the_last_bit(what: str, grade: float) -> None:
    for check in ("n/says", "n/either"):
        found = run(check, what)
        assert found == measured_result("c", grade) and repr(found.grade) == repr(grade)


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("math.nan", "returned nan (float); a check that returns a number must return one"),
        ("math.inf", "returned inf (float)"),
        ("1.0000001", "returned 1.0000001 (float)"),
        ("-1e-9", "returned -1e-09 (float)"),
        ("2", "returned 2 (int)"),
        ("None", "returned None (NoneType)"),
        ("'0.5'", "returned '0.5' (str)"),
        ("10 ** 400", "raised OverflowError"),
        ("__import__('numpy').float32(0.5)", "(numpy.float32); a check that returns a number"),
    ],
)
def test_what_is_no_number_from_zero_to_one_is_no_verdict(what: str, said: str) -> None:
    found = run("n/says", what)
    assert found.verdict is Verdict.UNVERIFIABLE and not found.for_every_response
    assert found.grade is None and said in found.reason
    rubric = Rubric((Criterion("c", "rule", "n/says", {"what": what}),))
    (score,) = score_texts(rubric, ["x"], check_timeout_s=5)
    assert isinstance(score, Unscored)


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("check", ["n/plain", "n/untold"])
def test_a_check_that_does_not_say_so_returns_no_number(check: str) -> None:
    assert run(check, "True") == CriterionResult("c", Verdict.FOLLOWED)
    assert run(check, "False") == CriterionResult("c", Verdict.NOT_FOLLOWED)
    found = run(check, "0.5")
    assert found.verdict is Verdict.UNVERIFIABLE
    assert found.reason.endswith(
        "returned 0.5 (float); a check must return True or False (or a number in [0, 1], if it"
        " says `-> float`)"
    )
    assert run(check, "1").reason.endswith("returned 1 (int); a check must return True or False")


@pytest.mark.usefixtures("numbers")
def test_loose_takes_the_most_of_all_variants_and_blank_text_has_none() -> None:
    criterion = Criterion("c", "rule", "n/says", {"what": "'b' == response or len(response) / 9"})
    strict = registry.run_check(criterion, "*a*\nb", timeout_s=5)
    loose = registry.run_check(criterion, "*a*\nb", mode="loose", timeout_s=5)
    assert strict == measured_result("c", 5 / 9) and loose == measured_result("c", 1.0)
    criterion = Criterion("c", "rule", "n/says", {"what": "1 - len(response) / 9"})
    loose = registry.run_check(criterion, "abc\nabcde", mode="loose", timeout_s=5)
    assert loose == measured_result("c", 1 - 3 / 9)  # without its last line
    assert registry.run_check(criterion, " ", timeout_s=5) == measured_result("c", 0.0)


@pytest.mark.usefixtures("numbers")
def test_the_best_response_may_get_a_whole_number() -> None:
    """`min(1, x)` is the int 1 from there on."""
    assert [run("n/says", "length", "x" * n).grade for n in (5, 10, 20)] == [0.5, 1.0, 1.0]


def test_the_near_end_looks_at_a_number_once_more() -> None:
    criterion = Criterion("c", "rule", "n/says")
    for text in ("2", "nan", "-0.1", "", "half", "0x1"):
        found = modules._result(criterion, Reply(0, Said.MEASURED, False, text))
        assert found.verdict is Verdict.UNVERIFIABLE and found.grade is None
        assert found.reason == "n/says answered what is no number in [0, 1]"
    found = modules._result(criterion, Reply(0, Said.MEASURED, False, "0.25"))
    assert found == measured_result("c", 0.25) and not math.isnan(found.grade or math.nan)


def test_the_frames_of_verdicts_are_what_they_were() -> None:
    head = b"\x00\x00\x00\x00\x00\x00\x00\x07"
    assert pack_reply(Reply(7, Said.FOLLOWED, False, "")) == head + b"\x06\x00"
    assert pack_reply(Reply(7, Said.NOT_FOLLOWED, True, "")) == head + b"\x07\x01"
    assert [member.value for member in Said] == list(range(1, 12))
