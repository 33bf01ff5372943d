"""What runs held in memory, beside what `herl plan` counted for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.report.write import write_report
from tests.unit.report.run_folders import make_run
from tests.unit.report.test_origins import shown

GIB = 1 << 30


def run_with(folder: Path, plan: Any, **values: float) -> Path:
    half = {name: value / 2 for name, value in values.items()}
    steps = [{"step": 0, "reward/mean": 0.5, **values}, {"step": 1, "reward/mean": 0.5, **half}]
    run = make_run(folder, seed=0, lines=steps)
    (run / "plan.json").write_text(json.dumps(plan))
    return run


def plan(gpu_bytes: int) -> dict[str, Any]:
    """Two stages; beside each an engine of 10 GiB, which sleeps at 2 GiB in the train step."""
    stages = [
        {
            "phases": {"log-probs": 13 * GIB, "parity check": 14 * GIB, "train step": top * GIB},
            "engine": {"log-probs": 2 * GIB, "parity check": 10 * GIB, "train step": 2 * GIB},
        }
        for top in (22, 27)
    ]
    return {"gpu_bytes": gpu_bytes, "ranks": stages, "engine": {"budget_bytes": 10 * GIB}}


def test_each_phase_has_its_peak_and_the_fullest_ranks_plan_without_the_engine(
    tmp_path: Path,
) -> None:
    measured = {
        "memory/trainer_device/train_step_gib": 24.5,
        "memory/trainer_device/log_probs_gib": 9.0,
        "memory/trainer_device/other_gib": 8.0,
        "memory/engine_device_gib": 9.75,
    }
    run = run_with(tmp_path, plan(80 * GIB), **measured)
    text = shown(write_report([run], out=tmp_path / "out"))
    # log-probs: 13 - 2 and 14 - 10, the larger; train step: 27 - 2 of the second stage
    assert "Memory beside the plan run part measured, GiB plan, GiB" in text
    for line in ("log-probs 9.00 11.00", "train step 24.50 25.00", "other 8.00 -"):
        assert f"{run} trainer, {line}" in text
    assert f"{run} engine 9.75 10.00" in text and "weight sync 0" not in text


def test_on_the_cpu_it_is_the_hosts(tmp_path: Path) -> None:
    measured = {"memory/trainer_host/train_step_gib": 3.0, "memory/engine_host_gib": 1.5}
    run = run_with(tmp_path, plan(0), **measured)
    text = shown(write_report([run], out=tmp_path / "out"))
    assert f"{run} trainer, train step 3.00 25.00" in text and f"{run} engine 1.50 10.00" in text


@pytest.mark.parametrize("content", [[], {"ranks": []}, None])
def test_another_file_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    run = run_with(tmp_path, content)
    with pytest.raises(ValueError, match=r"plan.json is not what `herl plan --json` prints"):
        write_report([run], out=tmp_path / "out")
