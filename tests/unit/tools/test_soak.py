"""The soak's slopes, from numbers put together by hand and from a small process that leaks."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.soak import Series, summary, watch

LEAKS = """
import pathlib, sys, time
kept = []
for step in range(int(sys.argv[2])):
    kept.append(open("/dev/null"))
    with open(sys.argv[3], "a") as file:
        file.write('{"reward/mean": 0}' + chr(10))
    time.sleep(0.2)
"""


def test_the_slope_begins_when_caches_are_filled() -> None:
    """100 KiB a step until step 50, then 3 KiB and one file in two steps."""
    series = Series("driver")
    for step in range(1, 101):
        series.steps.append(step)
        grown = 100 * min(step, 50) + 3 * max(step - 50, 0)
        series.resident_bytes.append(grown << 10)
        series.open_files.append(20 + step // 2)
    found = summary([series, Series("never seen")], 50)
    assert set(found) == {"driver"}
    numbers = found["driver"]
    assert numbers["resident_kib_per_step"] == pytest.approx(3.0)
    assert numbers["open_files_per_step"] == pytest.approx(0.5, abs=0.01)
    assert (numbers["steps"], numbers["open_files"]) == (100, 70)
    assert numbers["resident_mib"] == pytest.approx((5000 + 150) / 1024)
    assert math.isnan(series.slope(series.resident_bytes, 100))


def test_a_process_that_opens_a_file_each_step_is_found(tmp_path: Path) -> None:
    script, metrics = tmp_path / "leaks.py", tmp_path / "metrics.jsonl"
    script.write_text(LEAKS)
    process = subprocess.Popen(
        [sys.executable, str(script), "herl_megatron.cli", "12", str(metrics)]
    )
    (series,) = watch(process, metrics)
    assert process.wait() == 0 and series.name == "driver" and series.steps[-1] >= 10
    assert series.slope(series.open_files, 2) == pytest.approx(1.0, abs=0.2)
