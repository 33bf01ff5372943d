"""A run that is killed and resumed leaves the same files as one that nobody touched."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.observability.metrics import is_measured
from tests.e2e.conftest import Start
from tests.limits import HANG_S

pytestmark = pytest.mark.e2e

STEPS = 7


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line without what measures time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not is_measured(key)} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_killed_driver_and_resume_equal_the_whole_run(herl: Start, small: list[str]) -> None:
    """SIGKILL between two checkpoints, so that steps after the first of them are done twice."""
    settings = [
        *small, f"train.steps={STEPS}", "train.eval_every=3", "checkpoint.every=2",
        "megatron.tensor_parallel=2", "optimizer.schedule=cosine",
    ]  # fmt: skip
    whole = herl("train", "quickstart_cpu.yaml", *settings, "run.name=whole")
    code, output = whole.wait()
    assert code == 0, output

    killed = herl("train", "quickstart_cpu.yaml", *settings)
    written, end = killed.folder / "checkpoints" / "step_000002", time.monotonic() + HANG_S
    while not written.exists() and killed.process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    killed.process.kill()
    killed.wait()
    assert killed.leftovers() == []
    done = [row["step"] for row in metrics(killed.folder) if "reward/mean" in row]
    assert 1 <= done[-1] < STEPS - 1, "killed in the middle"

    resumed = herl("train", "quickstart_cpu.yaml", *settings, "run.resume=true")
    code, output = resumed.wait()
    assert code == 0, output
    assert "resumed from" in output and resumed.leftovers() == []

    reference = killed.folder.parent / "whole"
    assert metrics(killed.folder) == metrics(reference)
    assert len({row["train/lr"] for row in metrics(reference) if "train/lr" in row}) > 3
    for part in ("rollouts", "policy"):
        assert files(killed.folder / part) == files(reference / part)
    summaries = [
        json.loads((run / "summary.json").read_text()) for run in (killed.folder, reference)
    ]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]
    kept = sorted(path.name for path in (killed.folder / "checkpoints").glob("step_*"))
    assert kept == ["step_000006", "step_000007"]
    assert (killed.folder / "checkpoints" / "latest").resolve().name == "step_000007"
