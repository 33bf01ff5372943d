"""Mutated rows, evaluations and reports, in a second or two; more: `tools/fuzz_tables.py`."""

from __future__ import annotations

import random
from pathlib import Path

from tests.limits import FULL
from tools.fuzz_tables import fuzz_reports, fuzz_tables


def test_a_mutated_row_is_taken_or_refused_with_its_place(tmp_path: Path) -> None:
    inputs = 1000 if FULL else 80
    outcome = fuzz_tables(tmp_path, inputs, random.Random(20))
    assert outcome.failures == []
    assert outcome.taken + outcome.refused == inputs
    assert outcome.taken > 0 and outcome.refused > 0


def test_a_mutated_report_of_rows_is_taken_or_told_apart(tmp_path: Path) -> None:
    inputs = 1000 if FULL else 80
    outcome = fuzz_reports(tmp_path, inputs, random.Random(20))
    assert outcome.failures == []
    assert outcome.taken + outcome.refused == inputs
    assert outcome.taken > 0 and outcome.refused > 0
