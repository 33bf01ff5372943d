"""Mutated inputs at a size that takes seconds, or with `--full` minutes; more: `tools/fuzz.py`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.limits import FULL
from tools.fuzz import FUZZERS, Outcome


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("rows", 100), ("models", 30), ("families", 75), ("configs", 25), ("checkpoints", 50),
     ("references", 80)],
)  # fmt: skip
def test_a_mutated_input_is_taken_or_refused_with_its_place(
    tmp_path: Path, name: str, inputs: int
) -> None:
    inputs *= 25 if FULL else 1
    outcome = FUZZERS[name](tmp_path, inputs, random.Random(20))
    assert outcome.failures == []
    assert outcome.taken + outcome.refused == inputs
    assert outcome.taken > 0 and outcome.refused > 0


def test_what_is_no_refusal_with_a_place_is_a_failure() -> None:
    def bad() -> None:
        raise KeyError("added_tokens")

    def nowhere() -> None:
        raise ValueError("not JSON")

    outcome = Outcome()
    outcome.attempt(bad, said="one", places=["file"])
    outcome.attempt(nowhere, said="two", places=["file"])
    outcome.attempt(lambda: None, said="three", places=["file"])
    assert [said for said, _ in outcome.failures] == ["one", "two"] and outcome.taken == 1
