"""Benchmarks that start nothing run at their smallest size; none is without such a test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.load import load_config
from herl_megatron.config.reference_compat import effective
from tests.bench_cases import PURE, ROOT, WHOLE, WITH_RUNS, run_bench
from tools.bench import bench_arms


def test_every_benchmark_has_a_smoke_test() -> None:
    """The others' are in tests/e2e/test_benchmarks.py."""
    tools = {path.stem for path in (ROOT / "tools/bench").glob("bench_*.py")}
    assert tools == {*PURE, *WHOLE, *WITH_RUNS}


def numbers(value: Any) -> list[float]:
    """All numbers in what a benchmark measured."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("name", PURE)
def test_runs_at_its_smallest_size(name: str, tmp_path: Path) -> None:
    found = run_bench(name, PURE[name], tmp_path)
    assert all(row["what"] and row["result"] for row in found["results"])
    measured = numbers(found["raw"])
    assert measured and all(map(math.isfinite, measured))


@pytest.mark.parametrize("arm", bench_arms.ARMS)
def test_the_configuration_of_every_arm_is_read(arm: str) -> None:
    """Only one of them is trained by its smoke test."""
    loaded = load_config(ROOT / "configs/quickstart_cpu.yaml", list(bench_arms.ARMS[arm]))
    hindsight = effective(loaded.hindsight, loaded.rollout)
    assert hindsight.enabled == (arm != "rlvr")
    assert (hindsight.alpha == 0) == (arm in ("naive_he", "he"))
    assert (hindsight.method == "replay") == (arm == "hir")
