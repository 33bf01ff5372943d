"""Final answers: both verdicts, the border between them, bad parameters. Values by hand."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.rubrics.checks import registry
from herl_megatron.rubrics.checks.final_answers import last_boxed
from herl_megatron.types import Criterion, Verdict


def verdict(check: str, response: str, *, timeout_s: float = 20.0, **params: Any) -> Verdict:
    criterion = Criterion("c", "rule", check, params)
    assert registry.parameter_problem(criterion) == ""
    return registry.run_check(criterion, response, timeout_s=timeout_s).verdict


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{3}, no: \boxed {4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{a}", "a"),
        (r"\boxed{}", ""),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed{4", None),
        ("boxed{4}", None),
    ],
)
def test_the_last_box_that_closes(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}", True),
        (r"\frac{1}{2}", r"\boxed{0.51}", False),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True),
        ("(3,4]", r"\boxed{(3, 4]}", True),
        ("(3,4]", r"\boxed{(3, 4)}", False),
        ("1,-2", r"\boxed{-2, 1}", True),
        ("7", r"\boxed{7, 8}", False),
        ("x^2-1", r"\boxed{(x-1)(x+1)}", True),
        ("5.4 \\text{ cents}", r"\boxed{5.4}", True),
        (r"90^\circ", r"\boxed{90}", True),
        (r"\text{east}", r"\boxed{east}", True),
        (r"\text{east}", r"\boxed{\text{west}}", False),
        ("4", r"\boxed{4} as I said, or rather \boxed{3}", False),
        ("4", r"\boxed{}", False),
        ("4", "The final answer is 4.", True),
        ("4", "First 4, then 5. The answer is 5.", False),
        ("4", "I cannot tell.", False),
        ("4", "  ", False),
        ("4210_5", r"\boxed{4210_{5}}", True),
        ("4210_5", r"\boxed{4210}", True),
        ("4210_5", r"\boxed{4210_{7}}", False),
        ("5", "\uff15, so \\boxed{\uff15}", True),  # full-width digits
        ("512", r"\boxed{2^{3^2}}", True),
        ("5", r"\boxed{10^{10^{10}}}", False),
        ("5", "10^{10^{10}} is too large; the answer is 6.", False),
        ("5", "Of 2^10 1234567 ways none; the answer is 5.", True),
    ],
)
def test_an_answer_is_compared_as_mathematics(answer: str, response: str, right: bool) -> None:
    found = verdict("math/answer", response, answer=answer)
    assert found is (Verdict.FOLLOWED if right else Verdict.NOT_FOLLOWED)


def test_what_computes_for_ever_has_no_verdict_and_harms_none_after_it() -> None:
    """The library's own limit is off: it would take the alarm that ours is."""
    slow, right = r"\boxed{(x+y+z+1)^{99}}", "(x+y+z)^{98}"
    assert verdict("math/answer", slow, answer=right, timeout_s=0.3) is Verdict.UNVERIFIABLE
    assert verdict("math/answer", r"\boxed{5}", answer="5") is Verdict.FOLLOWED
    assert verdict("math/answer", "\\boxed{" + "1+" * 2000 + "1}", answer="2001") is (
        Verdict.NOT_FOLLOWED
    )


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"\boxed{\text{Choice B}}", "B"),
        (r"\boxed{\rm B}", "B"),
        ("The correct answer is choice B.", "B"),
        (r"\boxed{B, C}", ""),
        (r"\boxed{B or C}", ""),
        (r"\boxed{B/C/D/A}", ""),
        ("The answer is A or B.", ""),
        (r"\boxed{B: A catalyst}", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{(B)\ 3 \text{ m}}", "B"),
        (r"\boxed{B. Both of them}", "B"),
        (r"\boxed{Both}", None),
        (r"A seems wrong. \boxed{A}? No, \boxed{B}", "B"),
        ("Answer: C", "C"),
        ("The correct answer is (C).", "C"),
        ("The answer is A. Wait: the answer is **D**", "D"),
        ("All but one fall away.\n\n**D**", "D"),
        ("I would say (D)", None),
        ("The answer is Avogadro's number", None),
        ("Answer: J", None),
    ],
)
def test_a_choice_is_the_letter_that_is_boxed_or_announced(
    response: str, letter: str | None
) -> None:
    for asked in "ABCD":
        expected = Verdict.FOLLOWED if asked == letter else Verdict.NOT_FOLLOWED
        assert verdict("choice/letter", response, letter=asked) is expected


@pytest.mark.parametrize(
    ("check", "params", "problem"),
    [
        ("math/answer", {}, "answer: Field required"),
        ("math/answer", {"answer": " "}, "a blank text says nothing"),
        ("choice/letter", {"letter": "E"}, "no response can choose E of 4"),
        ("choice/letter", {"letter": "A", "choices": 11}, "11 choices; there are 2 to 10"),
        ("choice/letter", {"letter": "b"}, "letter: Input should be 'A'"),
    ],
)
def test_parameters_that_make_no_question(check: str, params: dict[str, Any], problem: str) -> None:
    assert problem in registry.parameter_problem(Criterion("c", "rule", check, params))


def test_no_description_tells_the_answer() -> None:
    """Revision prompts show it."""
    asked = Criterion("c", "rule", "math/answer", {"answer": "4711"})
    assert registry.describe(asked) == "Give the right final answer, in \\boxed{}."
    choice = Criterion("c", "rule", "choice/letter", {"letter": "C"})
    assert registry.describe(choice) == "Choose the right answer and give its letter, in \\boxed{}."
