"""What a user meets on a bad day: dead workers, interrupts, bad input."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e


def wait_for_step(run, count: int = 1, timeout_s: float = 120) -> None:
    """Return when the metrics of `count` steps are on disk."""
    path = run.folder / "metrics.jsonl"
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and run.process.poll() is None:
        if path.exists() and path.read_text().count("reward/mean") >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"no step {count} in {timeout_s} s: {run.process.communicate(timeout=10)[0]}")


def metrics(run: Path) -> list[dict]:
    """Every line without times and restarts."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = "rollout/engine_restarts"
    return [{k: row[k] for k in row if not k.endswith("_s") and k != left_out} for row in rows]


def shared_memory(run) -> set[str]:
    """Files in shared memory that the run's processes have open."""
    opened: set[str] = set()
    for process in run.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            opened |= {file.path for file in process.open_files()}
    return {path for path in opened if path.startswith("/dev/shm/")}


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("title", "named"),
    [("ray::TrainerRank", "trainer rank"), ("ray::EngineWorker", "rollout engine 0")],
)
def test_dead_worker_is_named_and_nothing_is_left(
    herl,
    small: list[str],
    title: str,
    named: str,
) -> None:
    run = herl(
        "train", "quickstart_cpu.yaml", *small, "train.steps=500", "checkpoint.every=1",
        "megatron.tensor_parallel=2", "rollout.max_engine_restarts=0",
    )  # fmt: skip
    wait_for_step(run, 2)
    run.workers(title)[-1].kill()
    code, output = run.wait(timeout_s=60)
    assert code == 1, output
    assert "stopped:" in output and named in output and "died" in output
    assert f"herl train {run.folder / 'config.yaml'} run.resume=true" in output
    assert run.leftovers() == []
    first = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert "eval/reward" in first  # what was done is still there
    assert (run.folder / "rollouts" / "step_000000.jsonl").exists()
    # The trainer outlives its engine, so the last policy is saved; its own death leaves none.
    assert (run.folder / "policy" / "config.json").exists() == (title == "ray::EngineWorker")


def test_engine_that_dies_and_then_hangs_changes_no_number(herl, small: list[str]) -> None:
    """One run loses its engine twice, another is left alone; they end with the same files.

    What the loss of one of an engine's several processes looks like: `tests/engine`.
    """
    settings = [*small, "train.steps=6", "rollout.stall_timeout_s=8", "checkpoint.every=0"]
    calm = herl("train", "quickstart_cpu.yaml", *settings, "run.name=calm")
    code, output = calm.wait()
    assert code == 0, output

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
    assert "rollout engine 0 hangs: no step finished for 8 s" in output
    assert shaken.leftovers() == [] and not any(map(os.path.exists, memory))

    reference = shaken.folder.parent / "calm"
    assert metrics(shaken.folder) == metrics(reference)
    for part in ("rollouts", "policy"):
        assert files(shaken.folder / part) == files(reference / part)
    summaries = [
        json.loads((run / "summary.json").read_text()) for run in (shaken.folder, reference)
    ]
    assert [summary["engine_restarts"] for summary in summaries] == [2, 0]


def test_sigterm_ends_every_process(herl, small: list[str]) -> None:
    run = herl("train", "quickstart_cpu.yaml", *small, "train.steps=500")
    wait_for_step(run)
    run.process.send_signal(signal.SIGTERM)
    code, output = run.wait(timeout_s=60)
    assert code == 130, output
    assert run.leftovers() == []


def test_engine_that_is_not_the_trainer_ends_the_run(herl, small: list[str]) -> None:
    """A limit below rounding stands for any difference: numbers, policy and no processes are left.

    It also has to hold back an engine that was never right, so the first sync is checked.
    """
    run = herl("train", "quickstart_cpu.yaml", *small, "parity.fp32_mean=1e-12")
    code, output = run.wait(timeout_s=120)
    assert code == 1, output
    assert "stopped: parity gate" in output and "limits mean 1e-12, max 0.001" in output
    assert run.leftovers() == []
    (row,) = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    assert 1e-12 < row["parity/mean"] < 1e-5
    assert (run.folder / "policy" / "config.json").exists()
