"""What a user meets on a bad day: dead workers, interrupts, bad input."""

from __future__ import annotations

import json
import signal
import time

import pytest

pytestmark = pytest.mark.e2e


def wait_for_step(run, timeout_s: float = 120) -> None:
    """Return when the first step's metrics are on disk."""
    path = run.folder / "metrics.jsonl"
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and run.process.poll() is None:
        if path.exists() and "reward/mean" in path.read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"no step within {timeout_s} s: {run.process.communicate(timeout=10)[0]}")


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
        "train", "quickstart_cpu.yaml", *small, "train.steps=500",
        "megatron.tensor_parallel=2",
    )  # fmt: skip
    wait_for_step(run)
    run.workers(title)[-1].kill()
    code, output = run.wait(timeout_s=60)
    assert code == 1, output
    assert "stopped:" in output and named in output and "died" in output
    assert run.leftovers() == []
    first = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert "eval/reward" in first  # what was done is still there
    assert (run.folder / "rollouts" / "step_000000.jsonl").exists()
    # The trainer outlives its engine, so the last policy is saved; its own death leaves none.
    assert (run.folder / "policy" / "config.json").exists() == (title == "ray::EngineWorker")


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
