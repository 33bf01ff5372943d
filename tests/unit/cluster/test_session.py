"""A Ray of our own: whom it talks to, what it leaves, and what happens when a part of it dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.limits import HANG_S

ROOT = Path(__file__).parents[3]

DRIVER = """
import asyncio, json, os, sys
import psutil, ray
from herl_megatron.cluster.health import WorkerError, wait_for
from herl_megatron.cluster.session import ray_session
from herl_megatron.config.schema import ClusterConfig

class Worker:
    def pid(self):
        return os.getpid()
    async def wait(self):
        await asyncio.sleep(600)

async def main():
    with ray_session(ClusterConfig()) as watch:
        worker = ray.remote(num_cpus=0)(Worker).remote()
        if sys.argv[1] == "end":  # a rank listens too; it takes seconds to import torch
            from herl_megatron.cluster.workers import TrainerRank
            rank = ray.remote(num_cpus=0)(TrainerRank).remote()
            await rank.address.remote()
        pid = await worker.pid.remote()
        mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = sorted({c.laddr.ip.removeprefix("::ffff:") for p in mine
                            for c in p.net_connections("inet") if c.status == "LISTEN"})
        folder = ray._private.worker._global_node.get_session_dir_path()
        nice = sorted({p.nice() for p in mine})
        print(json.dumps({"pid": pid, "listening": listening, "folder": folder, "nice": nice,
                          "commands": [p.cmdline() for p in mine]}), flush=True)
        try:
            if sys.argv[1] == "wait":
                await wait_for(worker.wait.remote(), who="worker", doing="wait", timeout_s=600)
        except asyncio.CancelledError:
            print(watch.ranks_stay, await asyncio.wait_for(worker.pid.remote(), 30), flush=True)
            raise
try:
    asyncio.run(main())
except (WorkerError, KeyboardInterrupt, asyncio.CancelledError) as error:
    print(type(error).__name__, error, flush=True)
"""


class Session:
    """A driver that has opened `ray_session`; `facts` is the line that it prints first."""

    def __init__(self, what: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, what],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        self.facts: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def child(self, program: str) -> psutil.Process:
        (found,) = [p for p in self.children if program in p.name()]
        return found

    def output(self) -> str:
        """The rest of what it prints, when it and all of its processes have ended."""
        output, _ = self.process.communicate(timeout=HANG_S)
        end = time.monotonic() + 30  # Ray's agents stayed for a minute
        while left := [p for p in self.children if _alive(p)]:
            assert time.monotonic() < end, f"left: {left}"
            time.sleep(0.1)
        while Path(self.facts["folder"]).parent.exists():
            assert time.monotonic() < end, f"left: {self.facts['folder']}"
            time.sleep(0.1)
        return output


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_ray_of_our_own_listens_on_loopback_only_and_leaves_no_session_folder() -> None:
    """Ports of its GCS and workers were open on all interfaces, and /tmp/ray/session_* stayed."""
    session = Session("end")
    assert session.facts["listening"] == ["127.0.0.1"]
    # Ray's default of 15 starved workers, and the agents that a start waits for, beside other work.
    assert session.facts["nice"] == [os.nice(0)]
    # What a Ray of one run asks nothing of: half of the CPU time of its start.
    idle = {"monitor.py", "log_monitor.py", "dashboard.py"}
    programs = {Path(part).name for line in session.facts["commands"] for part in line}
    assert "ray::RuntimeEnvAgent" in programs and programs & idle == set()
    assert session.output() == ""


@pytest.mark.parametrize(
    ("program", "ranks_stay"), [("gcs_server", True), ("raylet", False)], ids=["gcs", "raylet"]
)
def test_the_death_of_a_process_of_ray_ends_the_run_with_a_message(
    program: str, ranks_stay: bool
) -> None:
    """Without its GCS the driver was aborted after 60 s, without a message."""
    session = Session("wait")
    start = time.monotonic()
    session.child(program).kill()
    assert session.process.stdout is not None
    said = []
    for line in session.process.stdout:  # some of it is Ray's
        said.append(line.strip())
        if line.startswith("RayLost "):
            break
    assert time.monotonic() - start < 120  # seconds on a machine with nothing else to do
    assert f"{ranks_stay} {session.facts['pid']}" in said
    assert said[-1].startswith(f"RayLost Ray's {program} at 127.0.0.1:") and " died; " in said[-1]
    session.output()


STARTS_BADLY = """
import asyncio, sys
from herl_megatron.cluster import session
from herl_megatron.cluster.health import WorkerError
from herl_megatron.config.schema import ClusterConfig
import subprocess

def start(folder):
    (folder / "log").write_text("")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(process.pid, folder, flush=True)
    raise KeyboardInterrupt if sys.argv[1] == "interrupt" else Exception("Timed out.\\nMore.")

async def main():
    with session.ray_session(ClusterConfig()):
        pass

session._start = start
try:
    asyncio.run(main())
except WorkerError as error:
    print(error, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("what", ["interrupt", "fail"])
def test_a_start_that_fails_half_way_leaves_nothing(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTS_BADLY, what],
        capture_output=True, text=True, timeout=HANG_S, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    started, said = done.stdout.splitlines()
    pid, folder = started.split()
    assert not psutil.pid_exists(int(pid)) and not Path(folder).exists()
    assert said == "interrupted" or said.startswith("Ray did not start on this machine: Timed out.")


def test_a_session_whose_driver_is_killed_leaves_nothing() -> None:
    session = Session("wait")
    session.process.kill()
    session.output()


STARTS_SLOWLY = """
import asyncio, subprocess, sys
import psutil, ray
from herl_megatron.cluster import session
from herl_megatron.config.schema import ClusterConfig

real, begun = session._start, []

def start(folder):
    if not begun:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        raise Exception("The current node timed out during startup. This could happen because ...")
    real(folder)

async def main():
    with session.ray_session(ClusterConfig()):
        print(begun[0].wait(60), ray.is_initialized(), flush=True)

session._start = start
asyncio.run(main())
"""


def test_a_ray_that_was_too_slow_is_started_once_more() -> None:
    """On a machine with much to do a start took longer than the 30 s that Ray allows."""
    done = subprocess.run(
        [sys.executable, "-c", STARTS_SLOWLY], capture_output=True, text=True, timeout=HANG_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "-9 True\n", done.stderr
