"""No check raises on text that no one wrote on purpose, and each judges long text in time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from herl_megatron.types import Verdict
from tests.unit.rubrics import test_ifbench as ifbench
from tests.unit.rubrics import test_ifbench_forms as ifbench_forms
from tests.unit.rubrics import test_muldimif as muldimif
from tests.unit.rubrics.check_cases import run, skip_without_data

ODD_TEXTS = [
    "",
    " \n\t ",
    ".",
    "?!",
    "...\n...",
    "***\n***",
    "|",
    "||\n||\n||",
    "| a\n|---|\n| b | c | d |",
    "{",
    "[]",
    '{"a": null}',
    "[" * 5000,
    "1.\n2.\n- \n* ",
    "#\n## \n> ",
    "\x00\ud800\ufeff\u200b",
    "\ue000 a \ue001 b",
    "\U0001f989",
    '"""""\n"',
    "```json\n```",
    "```xml",
    "<em><i>",
    "Question 1\nQuestion 2",
]

CHECKS: dict[str, dict[str, Any]] = {
    **{f"ifbench/{name}": params for name, params, _, _ in ifbench.CASES},
    **{f"ifbench/{name}": params for name, params, _, _ in ifbench_forms.CASES},
}
RULES = [(f"muldimif/{label}", text) for label, text, _, _ in muldimif.CASES]


@pytest.mark.parametrize("check", CHECKS)
def test_ifbench(check: str) -> None:
    skip_without_data(check)
    for text in ODD_TEXTS:
        assert run(check, text, CHECKS[check], "loose").verdict is not Verdict.UNVERIFIABLE


def test_muldimif() -> None:
    for check, requirement in RULES:
        for text in ODD_TEXTS:
            result = run(check, text, {"text": requirement}, "loose")
            assert result.verdict is not Verdict.UNVERIFIABLE, (requirement, result.reason)


def test_long_text_is_judged_in_time() -> None:
    """20,000 characters of one kind, which patterns that backtrack would not survive."""
    start = time.perf_counter()
    checks = [*CHECKS.items(), *((check, {"text": text}) for check, text in RULES)]
    for check, params in checks:
        if check in ("ifbench/words:start_verb", "ifbench/ratio:stop_words"):
            continue  # Their data may be missing.
        for text in ("a" * 20_000, " \n" * 10_000 + "a", "* " * 10_000, "|" * 20_000):
            run(check, text, params)
    assert time.perf_counter() - start < 10
