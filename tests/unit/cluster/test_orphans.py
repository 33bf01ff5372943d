"""What a killed driver leaves is ended, whoever adopts it; other processes are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from herl_megatron.cluster.orphans import kill_marked
from tests.limits import HANG_S

ROOT = Path(__file__).parents[3]

DRIVER = """
import os, subprocess, sys, time
from herl_megatron.cluster.orphans import orphan_guard
from herl_megatron.weight_sync.bucket_folder import BucketFolder
sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
apart = {"start_new_session": True, "stdout": subprocess.DEVNULL}
before = subprocess.Popen(sleep, **apart)
with orphan_guard():
    weights = BucketFolder("orphan-test")
    worker = subprocess.Popen(sleep, **apart)
    print(before.pid, worker.pid, weights.folder, flush=True)
    sys.stdin.readline()
    weights.close()
print("HERL_SESSION" in os.environ, flush=True)
"""


def driver() -> tuple[subprocess.Popen[str], int, int, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    before, worker, weights = process.stdout.readline().split()
    return process, int(before), int(worker), Path(weights)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_killed_driver_leaves_no_marked_process_and_no_shared_memory() -> None:
    process, before, worker, weights = driver()
    assert weights.is_dir()
    process.kill()
    process.wait()
    end = time.monotonic() + HANG_S
    while (alive(worker) or weights.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(worker) and not weights.exists()
    assert alive(before)  # started before the guard: not its business
    psutil.Process(before).kill()


def test_an_agent_is_known_by_its_open_files_also_through_a_link(tmp_path: Path) -> None:
    """Where TMPDIR is a link, agents stayed: their files have the names behind it."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    started = {}
    for folder, title in ((there, "ray::Agent"), (there, "python"), (elsewhere, "ray::Agent")):
        folder.mkdir(exist_ok=True)
        code = "import sys, time; f = open(sys.argv[1], 'w'); print(flush=True); time.sleep(1000)"
        process = subprocess.Popen(
            [title, "-c", code, str(folder / f"{title}.log")],
            executable=sys.executable, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "\n"
        started[folder, title] = process
    link = tmp_path / "link"
    link.symlink_to(there)
    try:
        kill_marked("no such mark", link, of=("ray::", "python"))
        assert started.pop((there, "ray::Agent")).wait(timeout=HANG_S) == -9
        assert [process.poll() for process in started.values()] == [None, None]
    finally:
        for process in started.values():
            process.kill()
            process.communicate()


def test_an_end_in_order_kills_nothing() -> None:
    process, before, worker, _ = driver()
    output, _ = process.communicate("\n", timeout=HANG_S)
    assert output == "False\n"  # the mark is gone with the block
    time.sleep(0.5)
    assert alive(before) and alive(worker)
    for pid in (before, worker):
        psutil.Process(pid).kill()


def test_a_driver_that_could_say_nothing_has_its_last_checkpoint_named(tmp_path: Path) -> None:
    """Ray aborts the driver at its next call where the node's raylet died."""
    for step in (3, 20):
        (tmp_path / "run" / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    (tmp_path / "run" / "run.log").write_text("begun\n")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from herl_megatron.cluster.orphans import orphan_guard\n"
        f"with orphan_guard(run=Path({str(tmp_path / 'run')!r})): os.abort()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=HANG_S,
    )  # fmt: skip
    newest = tmp_path / "run" / "checkpoints" / "step_000020"
    said = (
        f"the last checkpoint is of step 20, {newest}; a policy comes of it by: herl convert to-hf"
        f" --megatron {newest} --out {tmp_path}/run/policy_step_000020\n"
    )
    assert "raylet died" in done.stderr and said in done.stderr
    assert (tmp_path / "run" / "run.log").read_text().endswith(said)
