"""What slurm/ray_cluster.sh decides, with a stub in place of Python: neither Ray nor a model."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
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
    ("command", "said"), [("train", "yes"), ("sft", "yes"), ("dpo", "yes"), ("eval", "no")]
)
def test_which_commands_have_another_turn(command: str, said: str) -> None:
    assert shell(f"resumes {command} && echo yes || echo no").split() == [said]


def test_a_job_that_fits_rows_says_what_it_takes() -> None:
    for arguments in ([], ["sft"], ["train", "config.yaml"]):
        done = subprocess.run(
            ["bash", "slurm/tune.sbatch", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr.startswith("usage: sbatch"), arguments


@pytest.mark.parametrize(
    ("cpus", "fewest"), [("96", "96"), ("96(x2)", "96"), ("96(x2),64,128", "64"), ("8,9", "8")]
)
def test_a_step_asks_for_what_the_smallest_node_has(cpus: str, fewest: str) -> None:
    assert shell("fewest_cpus", SLURM_JOB_CPUS_PER_NODE=cpus).split() == [fewest]


_SLOW_RAY = """\
#!/usr/bin/env bash
case "$*" in
    *get_node_ip_address*) echo 10.0.0.1 ;;
    *ray.scripts.scripts*)
        echo start >>{folder}/starts
        sleep 60 >/dev/null 2>&1 & echo $! >>{folder}/left
        [ $(wc -l <{folder}/starts) -lt {starts} ] || {{ kill $!; exit {code}; }}
        echo "Exception: The current node {reason} during startup." >&2
        exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("starts", "code", "reason", "wanted", "ends"),
    [(3, 0, "timed out", 3, 0), (9, 0, "timed out", 3, 1), (2, 0, "died", 1, 1)],
    ids=["slow", "never", "another error"],
)
def test_a_ray_that_was_too_slow_on_a_node_is_started_again(
    tmp_path: Path, starts: int, code: int, reason: str, wanted: int, ends: int
) -> None:
    """Ray's limit is 30 s; nothing of an attempt is left, which could join the cluster later."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    text = _SLOW_RAY.format(folder=tmp_path, starts=starts, code=code, reason=reason)
    python.write_text(text)
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "slurm/ray_cluster.sh", "node", "worker"],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, env=os.environ | {
            "HERL_VENV": str(tmp_path / "venv"), "HERL_INTERFACE": "", "HERL_CONTAINER_IMAGE": "",
            "RAY_FOLDER": str(tmp_path / "ray"), "RAY_HEAD": "10.0.0.1:1",
        },
    )  # fmt: skip
    assert done.returncode == ends, done.stdout + done.stderr
    assert (tmp_path / "starts").read_text().count("start") == wanted
    assert f"The current node {reason} during startup" in done.stderr
    assert ("attempt 1 of 3" in done.stdout) == (reason == "timed out")
    left = [int(line) for line in (tmp_path / "left").read_text().split()]
    assert any(map(_is_alive, left)) == (reason == "died")


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
