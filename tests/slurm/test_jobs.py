"""slurm/*.sbatch on a real Slurm of two nodes on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.observability.metrics import is_measured
from tests.e2e.conftest import ROOT, Start
from tests.limits import HANG_S
from tests.slurm.cluster import Slurm, why_not

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(why_not()), reason=why_not())]
STEPS = 16


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository at a path with a space."""
    link = tmp_path / "my work" / "herl"
    link.parent.mkdir()
    link.symlink_to(ROOT)
    return link


def submit(slurm: Slurm, checkout: Path, *overrides: str, **env: str) -> str:
    log = checkout.parent / "job.log"
    job = slurm.call(
        "sbatch", "--parsable", "--nodes=2", f"--output={log}", "slurm/train.sbatch",
        "configs/quickstart_cpu.yaml", *overrides, cwd=checkout,
        HERL_ROOT=str(checkout), HERL_LOGS=str(checkout.parent / "logs"), **env,
    )  # fmt: skip
    return job.strip()


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line without what measures time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not is_measured(key)} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_stopped_before_the_time_limit_queued_again_and_resumed(
    slurm: Slurm, forked_herl: Start, small: list[str], checkout: Path
) -> None:
    """No checkpoint is due before the signal comes, so that one taken because of it is resumed; the
    result is that of a run on one node which nobody stopped."""
    settings = [
        *small, f"train.steps={STEPS}", "train.eval_every=0", "data.eval=", "parity.every=0",
        "checkpoint.every=0", "megatron.tensor_parallel=1", "megatron.data_parallel=2",
        "rollout.replicas=2",
    ]  # fmt: skip
    run, log = checkout.parent / "run", checkout.parent / "job.log"
    job = submit(
        slurm, checkout, *settings, f"run.dir={checkout.parent}", "run.name=run",
        "cluster.device=cpu", HERL_SKIP_PLAN="1",
    )  # fmt: skip
    whole = forked_herl("train", "quickstart_cpu.yaml", *settings)
    metrics_file = run / "metrics.jsonl"
    _until(lambda: metrics_file.exists() and len(metrics(run)) > 1, slurm, job, log)
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    _until(lambda: slurm.state(job)["Restarts"] == "1", slurm, job, log)
    # It may begin when the nodes have forgotten the first turn's credential: `cred_expire`.
    slurm.wait(job, ("RUNNING",))
    ended = slurm.wait(job, ("COMPLETED", "FAILED", "CANCELLED"))
    said = log.read_text()
    assert ended["JobState"] == "COMPLETED" and ended["ExitCode"] == "0:0", said
    assert said.count("Ray on 2 nodes") == 2 and "resumed from" in said, said
    code, output = whole.wait()
    assert code == 0, output

    assert len(metrics(run)) == STEPS and metrics(run) == metrics(whole.folder)
    for part in ("rollouts", "policy"):
        assert files(run / part) == files(whole.folder / part)
    assert len(list((checkout.parent / "logs" / job).glob("ray-*.log"))) == 2
    assert not left_in_tmp(job)


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("rollout.kv_cache_bytes=1000000000000000", "1:0", "does not fit: most is needed by"),
        ("train.steps=none", "2:0", "train.steps: 'none' is not allowed"),
    ],
    ids=["does not fit", "mistake"],
)
def test_what_cannot_run_ends_before_ray_starts_and_is_not_queued_again(
    slurm: Slurm, small: list[str], checkout: Path, override: str, code: str, message: str
) -> None:
    job = submit(slurm, checkout, *small, override, HERL_REQUEUE_FAILED="3")
    ended = slurm.wait(job, ("COMPLETED", "FAILED", "CANCELLED"))
    said = (checkout.parent / "job.log").read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", code, "0"), said
    assert message in said and "Ray on" not in said, said
    assert not left_in_tmp(job)


def left_in_tmp(job: str) -> list[Path]:
    """What ray_cluster.sh makes there for a job; not another job's whose number begins alike."""
    made = (Path(f"/tmp/herl-{job}"), Path(f"/tmp/herl-{job}.venv"))
    return [path for path in made if path.exists() or path.is_symlink()]


def _until(true: Callable[[], bool], slurm: Slurm, job: str, log: Path) -> None:
    end = time.monotonic() + HANG_S
    while not true():
        late = time.monotonic() > end
        assert not late and slurm.state(job)["JobState"] != "FAILED", log.read_text()
        time.sleep(0.2)
