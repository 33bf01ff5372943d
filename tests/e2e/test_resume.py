"""A run that is killed and resumed, or loses its engines, leaves the files of one that nobody
touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from herl_megatron.observability.metrics import is_measured
from tests.e2e.conftest import Run, Start, starting, wait_for_step
from tests.limits import HANG_S

pytestmark = pytest.mark.e2e

STEPS = 7
RESTARTS = "rollout/engine_restarts"


@pytest.fixture(scope="module")
def settings(small: list[str]) -> list[str]:
    """Of all runs here."""
    return [
        *small, f"train.steps={STEPS}", "train.eval_every=3", "checkpoint.every=2",
        "megatron.tensor_parallel=2", "optimizer.schedule=cosine", "rollout.stall_timeout_s=20",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(
    settings: list[str], fork_server: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of the run that nobody touched."""
    with starting(tmp_path_factory.mktemp("whole"), "whole", fork_server) as start:
        run = start("train", "quickstart_cpu.yaml", *settings)
        code, output = run.wait()
        assert code == 0, output
        return run.folder


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line without what measures time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not is_measured(key)} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def check_same_files(run: Path, whole: Path) -> None:
    for part in ("rollouts", "policy"):
        assert files(run / part) == files(whole / part)
    kept = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert kept == ["step_000006", "step_000007"]
    assert (run / "checkpoints" / "latest").resolve().name == "step_000007"


def summaries(*runs: Path) -> list[dict[str, Any]]:
    """Without times."""
    found = [json.loads((run / "summary.json").read_text()) for run in runs]
    for summary in found:
        del summary["seconds"]
    return found


def test_killed_driver_and_resume_equal_the_whole_run(
    herl: Start, settings: list[str], whole: Path
) -> None:
    """SIGKILL between two checkpoints, so that steps after the first of them are done twice."""
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

    assert metrics(killed.folder) == metrics(whole)
    assert len({row["train/lr"] for row in metrics(whole) if "train/lr" in row}) > 3
    check_same_files(killed.folder, whole)
    ours, theirs = summaries(killed.folder, whole)
    assert ours == theirs


def shared_memory(run: Run) -> set[str]:
    """Files in shared memory that the run's processes have open."""
    opened: set[str] = set()
    for process in run.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            opened |= {file.path for file in process.open_files()}
    return {path for path in opened if path.startswith("/dev/shm/")}


def test_engine_that_dies_and_then_hangs_changes_no_number(
    herl: Start, settings: list[str], whole: Path
) -> None:
    """One run loses its engine twice, another is left alone; they end with the same files.

    What the loss of one of an engine's several processes looks like: `tests/engine`.
    """
    shaken = herl("train", "quickstart_cpu.yaml", *settings)
    seen = []
    for steps, loss in ((1, signal.SIGKILL), (3, signal.SIGSTOP)):
        wait_for_step(shaken, steps)
        (engine,) = shaken.workers("ray::EngineWorker")
        seen.append(engine.pid)
        memory = shared_memory(shaken)
        assert any("herl-weights" in name for name in memory)
        engine.send_signal(loss)
    wait_for_step(shaken, 5)
    (engine,) = shaken.workers("ray::EngineWorker")
    assert engine.pid not in seen and engine.children() == []
    code, output = shaken.wait()
    assert code == 0, output
    assert "rollout engine 0 died" in output and "restart 1 of at most 3" in output
    assert "rollout engine 0 hangs: no step finished for 20 s" in output
    assert shaken.leftovers() == [] and not any(map(os.path.exists, memory))

    with_losses, without = (
        [{key: row[key] for key in row if key != RESTARTS} for row in metrics(run)]
        for run in (shaken.folder, whole)
    )
    assert with_losses == without
    check_same_files(shaken.folder, whole)
    found = [summary["engine_restarts"] for summary in summaries(shaken.folder, whole)]
    assert found == [2, 0]
