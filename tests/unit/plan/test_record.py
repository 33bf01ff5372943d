"""A run on GPUs writes what `herl plan` counts for it, by a process beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

from herl_megatron.config.load import save_resolved
from herl_megatron.config.schema import ClusterConfig, Config, DataConfig, ModelConfig, RunConfig
from herl_megatron.plan import record
from herl_megatron.plan.record import plan_beside
from tests.toy_copies import copy_toy_task


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with its config.yaml."""
    copy_toy_task(tmp_path / "toy", seed=0, train_prompts=4, heldout_prompts=1, sft_rows=1)
    config = Config(
        run=RunConfig(dir=str(tmp_path), name="run"),
        model=ModelConfig(path=f"{tmp_path}/toy/model"),
        data=DataConfig(train=f"{tmp_path}/toy/train.jsonl"),
    )
    (tmp_path / "run").mkdir()
    save_resolved(config, tmp_path / "run" / "config.yaml")
    return tmp_path / "run"


def test_the_file_is_the_plan_for_the_runs_gpu(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.nice", lambda by: by)
    record.main([str(run), "h200-141", "1"])
    found = json.loads((run / "plan.json").read_text())
    assert found["gpu_bytes"] == (143771 << 20) - (4 << 30)  # less the reserve of docs/planning.md
    assert {"train step", "log-probs", "weight sync"} <= found["ranks"][0]["phases"].keys()
    assert not (run / "plan.json.tmp").exists()


def of_this_run(run: Path) -> list[psutil.Process]:
    """Child processes that were told its folder; other tests have left theirs here."""
    return [child for child in psutil.Process().children() if str(run) in child.cmdline()]


def test_on_the_cpu_nothing_is_started(run: Path) -> None:
    with plan_beside(run, ClusterConfig(), device="", per_node=0):
        assert of_this_run(run) == []
    with plan_beside(run, ClusterConfig(), device="Unheard-of GPU", per_node=1):
        assert of_this_run(run) == []


def test_it_ends_with_the_run(run: Path) -> None:
    with plan_beside(run, ClusterConfig(), device="NVIDIA H200", per_node=1):
        (child,) = of_this_run(run)
        assert child.cmdline()[0] == sys.executable
    assert not child.is_running()


def test_the_driver_stays_free_of_megatron(run: Path) -> None:
    """Counting builds Megatron-Core's model. What reads its checkpoints takes most of a second."""
    import subprocess

    code = (
        "import sys, herl_megatron.commands.train\n"
        "spared = {'megatron.core', 'torch.distributed.checkpoint', 'sympy'}\n"
        "print(spared & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
