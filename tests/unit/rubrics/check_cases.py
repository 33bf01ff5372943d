"""What the tests of checks share: one verdict, and the reference verdicts of the parity tests."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.rubrics.checks import nltk_tools, registry
from herl_megatron.rubrics.checks.local import Mode
from herl_megatron.types import Criterion, CriterionResult, Verdict


def run(
    check: str, response: str, params: dict[str, Any], mode: Mode = "strict"
) -> CriterionResult:
    return registry.run_check(
        Criterion("c", "rule", check=check, params=params), response, mode=mode
    )


def follows(check: str, response: str, params: dict[str, Any], mode: Mode = "strict") -> bool:
    result = run(check, response, params, mode)
    assert result.verdict is not Verdict.UNVERIFIABLE, result.reason
    return result.verdict is Verdict.FOLLOWED


def skip_without_data(check: str) -> None:
    for resource in registry.get(check).data:
        if problem := nltk_tools.missing_data(resource):
            pytest.skip(problem)


def reference_rows(name: str) -> Iterator[dict[str, Any]]:
    """Rows of a file of HERL_DATA_DIR; skips the test where the variable is not set."""
    folder = os.environ.get("HERL_DATA_DIR")
    if not folder:
        pytest.skip("HERL_DATA_DIR is not set: no reference verdicts to compare with")
    with gzip.open(Path(folder) / name, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


@dataclass
class Parity:
    """Our verdicts against the reference's. Totals are of comparable verdicts only."""

    compared: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    differences: list[tuple[Any, str]] = field(default_factory=list)
    prompts: int = 0
    reference_prompts: int = 0

    def add_prompt(
        self, key: Any, verdicts: list[tuple[str, CriterionResult | None, bool]]
    ) -> None:
        """`verdicts`: name, our result (None where the reference is random), the reference's."""
        ours, theirs = True, True
        for name, result, expected in verdicts:
            if result is None or result.verdict is Verdict.UNVERIFIABLE:
                self.left_out[name] += 1
                continue
            followed = result.verdict is Verdict.FOLLOWED
            ours, theirs = ours and followed, theirs and expected
            self.compared += 1
            if followed != expected:
                self.differences.append((key, name))
        self.prompts += ours
        self.reference_prompts += theirs


def instruction_parity(benchmark: str, mode: Mode) -> Parity:
    """Parity of one of the two benchmarks whose checks take parameters."""
    parity = Parity()
    for row in reference_rows(f"{benchmark}_qwen25_7b.jsonl.gz"):
        names = row["instruction_id_list"]
        random_in_reference = row["do_not_compare"] or [None] * len(names)
        parity.add_prompt(
            row["key"],
            [
                (
                    name,
                    None if reason else run(f"{benchmark}/{name}", row["response"], params, mode),
                    expected,
                )
                for name, params, expected, reason in zip(
                    names, row["kwargs"], row[mode], random_in_reference, strict=True
                )
            ],
        )
    return parity
