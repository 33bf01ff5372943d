"""What slurm/ray_cluster.sh decides, with a stub in place of Python: neither Ray nor a model."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.limits import HANG_S
from tests.slurm.cluster import Slurm, why_not

needs_slurm = pytest.mark.skipif(bool(why_not()), reason=why_not())
pytestmark = pytest.mark.e2e
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
_STUB = """\
#!/usr/bin/env bash
case "$*" in
    *get_node_ip_address*) echo {address} ;;
    *ray.scripts.scripts*) exec sleep 300 ;;
    *"cli train"*)
        echo "driver up"
        trap 'exit 130' TERM
        while :; do sleep 0.1 & wait $!; done ;;
esac
"""


def shell(code: str, **env: str) -> str:
    """What functions of ray_cluster.sh print."""
    command = ["bash", "-euo", "pipefail", "-c", f"source slurm/ray_cluster.sh; {code}"]
    return subprocess.check_output(command, cwd=ROOT, text=True, env=os.environ | env)


def test_only_failed_turns_count_against_the_limit(tmp_path: Path) -> None:
    """Before the first failure there may be any number of turns that the time limit ended."""
    turn = "CANCELLED=0; sleep() { :; }; scontrol() { echo queued; }; another_turn 1"
    env = {"HERL_LOGS": str(tmp_path), "HERL_REQUEUE_FAILED": "1", "SLURM_JOB_ID": "7"}
    first, second = (shell(turn, **env, SLURM_RESTART_COUNT=count) for count in ("5", "6"))
    assert "turn 7 goes on" in first and "queued" in first
    assert "sbatch again to resume it" in second and "queued" not in second


@pytest.mark.parametrize(
    ("cpus", "fewest"), [("96", "96"), ("96(x2)", "96"), ("96(x2),64,128", "64"), ("8,9", "8")]
)
def test_a_step_asks_for_what_the_smallest_node_has(cpus: str, fewest: str) -> None:
    assert shell("fewest_cpus", SLURM_JOB_CPUS_PER_NODE=cpus).split() == [fewest]


def submit(slurm: Slurm, folder: Path, address: str) -> str:
    """A job that runs the stub on nodes which call themselves `address`."""
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_STUB.format(address=address))
    python.chmod(0o755)
    return slurm.call(
        "sbatch", "--parsable", "--nodes=2", f"--output={folder / 'log'}", "slurm/train.sbatch",
        "configs/quickstart_cpu.yaml", cwd=ROOT, HERL_ROOT=str(ROOT), HERL_TMP=str(folder),
        HERL_LOGS=str(folder / "logs"), HERL_VENV=str(folder / "venv"), HERL_SKIP_PLAN="1",
        HERL_REQUEUE_FAILED="1",
    ).strip()  # fmt: skip


@needs_slurm
def test_a_cancelled_job_is_not_queued_again(slurm: Slurm, tmp_path: Path) -> None:
    job, log = submit(slurm, tmp_path, "10.0.0.1"), tmp_path / "log"
    end = time.monotonic() + HANG_S
    while not log.exists() or "driver up" not in log.read_text():
        assert time.monotonic() < end, slurm.state(job)
        time.sleep(0.2)
    slurm.call("scancel", job)
    ended = slurm.wait(job, ENDED)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), log.read_text()


@needs_slurm
def test_an_address_that_no_other_node_can_reach_is_refused(slurm: Slurm, tmp_path: Path) -> None:
    ended = slurm.wait(submit(slurm, tmp_path, "127.0.1.1"), ENDED)
    said = (tmp_path / "log").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), said
    assert "127.0.1.1, which no other node can reach" in said and "Ray on" not in said
