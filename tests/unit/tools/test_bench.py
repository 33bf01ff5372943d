"""Ratios of paired measurements, against values worked out by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.limits import HANG_S
from tools.bench import _bench

ROOT = Path(__file__).parents[3]


def test_paired_ratio_is_the_median_of_the_pairs_own_ratios() -> None:
    # The pairs say 2, 2, 3; the columns' medians, 24 and 10, would say 2.4.
    middle, low, high = _bench.paired_ratio([2, 24, 30], [1, 12, 10], seed=1)
    assert middle == 2
    assert low == 2 and high == 3


def test_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        values = generator.lognormal(0.0, 0.3, 15)  # its median is exp(0)
        _, low, high = _bench.median_interval(values.tolist(), seed=trial)
        held += low <= 1.0 <= high
    assert 88 <= held <= 100


def test_same_seed_gives_the_same_interval() -> None:
    values = [1.0, 1.5, 1.2, 0.9, 3.0]
    assert _bench.median_interval(values, seed=3) == _bench.median_interval(values, seed=3)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_measurements_that_make_no_pairs_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="paired_ratio needs"):
        _bench.paired_ratio(a, b, seed=0)


def test_report_prints_verdicts_and_writes_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        _bench.Row("step", _bench.interval_text((1.1851, 1.1, 1.25)), "<= 1.25x", met=True),
        _bench.Row("barrier", "1.02x", ">= 1.15x", met=False),
    ]
    out = tmp_path / "deep" / "bench.json"
    _bench.report("A title", rows, raw={"s": [1.0]}, started_on=_bench.machine(), out=out)
    printed = capsys.readouterr().out
    assert "1.19x [1.1, 1.25]" in printed and "met" in printed and "missed" in printed
    written = json.loads(out.read_text())
    assert written["results"][1] == {
        "what": "barrier", "result": "1.02x", "goal": ">= 1.15x", "met": False,
    }  # fmt: skip
    assert written["raw"] == {"s": [1.0]}
    assert written["machine"]["cpus"] >= 1


def test_no_tool_replaces_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "bench.json"
    mine.write_text("mine")
    folder = ROOT / "tools/bench"
    tools = sorted(folder.glob("bench_*.py"))
    assert len(tools) >= 13
    for tool in (*tools, folder / "gpu_first_run.py", folder / "plan_memory.py"):
        text = tool.read_text()
        assert '"--out", type=new_file' in text or "os.path.lexists(args.out)" in text, tool
    done = subprocess.run(
        [sys.executable, folder / "bench_packing.py", "--out", mine],
        capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode == 2 and "is there already; name another file" in done.stderr
    assert mine.read_text() == "mine"
