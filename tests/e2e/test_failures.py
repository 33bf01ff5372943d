"""What a user meets on a bad day: dead workers, interrupts, bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.conftest import ROOT, Start, wait_for_step
from tests.limits import HANG_S

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("title", "named", "policy_stays"),
    [
        ("ray::TrainerRank", "trainer rank", False),
        ("ray::EngineWorker", "rollout engine 0", True),
        ("gcs_server", "Ray's gcs_server", True),
        ("raylet/raylet", "raylet", False),
    ],
    ids=["trainer", "engine", "gcs", "raylet"],
)
def test_dead_worker_is_named_and_nothing_is_left(
    herl: Start, small: list[str], tmp_path: Path, title: str, named: str, policy_stays: bool
) -> None:
    """What can still give the policy does; else the last checkpoint is named, and the command that
    makes a policy of it works."""
    ranks = 2 if title == "ray::TrainerRank" else 1
    run = herl(
        "train", "quickstart_cpu.yaml", *small, "train.steps=500", "checkpoint.every=1",
        f"megatron.tensor_parallel={ranks}", "rollout.max_engine_restarts=0",
    )  # fmt: skip
    wait_for_step(run, 2)
    run.workers(title)[-1].kill()
    code, output = run.wait()
    assert named in output and "died" in output
    if named != "raylet":  # without it Ray aborts the driver at its next call
        assert code == 1, output
        assert "stopped:" in output
        assert f"herl train {run.folder / 'config.yaml'} run.resume=true" in output
    assert run.leftovers() == []
    first = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert "eval/reward" in first  # what was done is still there
    assert (run.folder / "rollouts" / "step_000000.jsonl").exists()
    assert (run.folder / "policy" / "config.json").exists() == policy_stays
    if policy_stays:
        return
    newest = sorted((run.folder / "checkpoints").glob("step_*"))[-1]
    step = int(newest.name.removeprefix("step_"))
    assert f"the last checkpoint is of step {step}, {newest}" in output
    (command,) = re.findall(r"herl (convert to-hf --megatron \S+ --out \S+)", output)
    made = subprocess.run(
        [sys.executable, "-m", "herl_megatron.cli", *shlex.split(command)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=HANG_S,
    )  # fmt: skip
    assert made.returncode == 0 and (run.folder / f"policy_{newest.name}/config.json").exists()


def test_sigterm_ends_every_process(herl: Start, small: list[str]) -> None:
    run = herl("train", "quickstart_cpu.yaml", *small, "train.steps=500")
    wait_for_step(run)
    run.process.send_signal(signal.SIGTERM)
    code, output = run.wait()
    assert code == 130, output
    assert run.leftovers() == []


def test_ctrl_c_twice_leaves_nothing(toy: Path, small: list[str], tmp_path: Path) -> None:
    """In the middle of the start, and while a checkpoint is written; every moment, once and twice:
    `tools/bench/interrupt_test.py`."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bench/interrupt_test.py",
         str(ROOT / "configs/quickstart_cpu.yaml"), *small, "--moments", "start", "checkpoint",
         "--times", "2", "--out", tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=2 * HANG_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 points left nothing" in done.stdout


@pytest.mark.parametrize("baseline", ["folder", "first_sync"])
def test_engine_that_is_not_the_trainer_ends_the_run(
    forked_herl: Start, small: list[str], baseline: str
) -> None:
    """A cap below rounding stands for any difference: it holds back an engine that was never right
    before a sync, and after one the numbers, the policy and no processes are left."""
    run = forked_herl(
        "train", "quickstart_cpu.yaml", *small, "parity.fp32_mean=1e-12",
        f"parity.baseline={baseline}",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 1, output
    assert "stopped: parity gate" in output and "(limits mean 1e-12, max 0.01)" in output
    assert run.leftovers() == []
    if baseline == "folder":
        assert "before any weight sync" in output
        return
    (row,) = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    assert 1e-12 < row["parity/mean"] < 1e-5
    assert (run.folder / "policy" / "config.json").exists()


def test_lost_weights_end_the_run_and_are_kept_nowhere(
    forked_herl: Start, small: list[str], toy: Path, tmp_path: Path
) -> None:
    """A learning rate at which the first step leaves finite weights that answer everything with one
    token: no checkpoint of them, though every step is one, no policy, and no NaN on disk."""
    run = forked_herl(
        "train", "quickstart_cpu.yaml", *small, "train.steps=8", "checkpoint.every=1",
        "checkpoint.keep=1", "optimizer.lr=3", "optimizer.warmup_steps=0", "parity.every=0",
        "megatron.tensor_parallel=2", "hindsight.join_cut=true",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 1, output
    assert re.search(r"stopped: the policy is dead: all \d+ responses to \d+ prompts", output), (
        output
    )
    assert "the policy is dead and not exported; no checkpoint was saved" in output
    assert not (run.folder / "policy").exists() and not (run.folder / "checkpoints").exists()
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()
    assert run.leftovers() == []


def test_one_nan_in_one_weight_is_found_before_it_is_used(
    forked_herl: Start, small: list[str], toy: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(toy / "model", model)
    weights = {name: t.clone() for name, t in load_file(model / "model.safetensors").items()}
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    run = forked_herl(
        "train", "quickstart_cpu.yaml", *small, f"model.path={model}", "parity.every=0"
    )
    code, output = run.wait()
    assert code == 1, output
    assert f"stopped: the weights in {model}: 1 of " in output
    assert "parameters hold NaN or infinity, first decoder.layers.1.mlp.linear_fc2" in output
    assert not (run.folder / "policy").exists() and run.leftovers() == []
