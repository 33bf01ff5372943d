"""Two nodes on one machine: own network, own shared memory, a Ray node in each.

A node is a process in a network and a mount namespace of its own. Nothing is left behind: both go
with their last process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
RAY_PORT = 6379


@dataclass
class Node:
    """A node: `address` in the nodes' own network, and the process that keeps it."""

    address: str
    keeper: subprocess.Popen[str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, command: Sequence[str | Path], *, log: Path, **env: str
    ) -> subprocess.Popen[str]:
        """Start a command on the node; it writes to `log`."""
        inside = ["nsenter", "-t", str(self.keeper.pid), "-n", "-m", f"-w{log.parent}"]
        with log.open("a") as out:
            process = subprocess.Popen(
                [*inside, *map(str, command)],
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
            )
        self.started.append(process)
        return process

    def shared_memory(self) -> list[str]:
        """What lies in the node's /dev/shm, without Ray's own."""
        command = ["nsenter", "-t", str(self.keeper.pid), "-m", "ls", "-A", "/dev/shm"]
        return [name for name in subprocess.check_output(command, text=True).split()
                if "herl" in name]  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on the node."""
        network = os.readlink(f"/proc/{self.keeper.pid}/ns/net")
        return [p for p in psutil.process_iter() if p.pid != self.keeper.pid
                and _link(f"/proc/{p.pid}/ns/net") == network]  # fmt: skip

    def unplug(self) -> None:
        """Cut the node off: nobody hears of it again, not even that connections ended."""
        inside = ["nsenter", "-t", str(self.keeper.pid), "-n"]
        subprocess.run([*inside, "ip", "link", "set", "link0", "down"], check=True)

    def end(self) -> None:
        """Kill all of it."""
        for process in self.processes():
            process.kill()
        for begun in self.started:
            begun.wait(timeout=HANG_S)
        self.keeper.kill()
        self.keeper.wait(timeout=HANG_S)


def why_not() -> str:
    """Why there can be no such nodes here; empty where there can."""
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "needs Linux with unshare, nsenter and ip"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", "mount -t tmpfs none /dev/shm"],
        capture_output=True, text=True,
    )  # fmt: skip
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that see each other and all files, but neither this machine's network nor each
    other's shared memory."""
    nodes = (Node("10.77.0.1", _keeper()), Node("10.77.0.2", _keeper()))
    try:
        pids = [str(node.keeper.pid) for node in nodes]
        subprocess.run(
            ["ip", "link", "add", "link0", "netns", pids[0], "type", "veth",
             "peer", "name", "link0", "netns", pids[1]],
            check=True,
        )  # fmt: skip
        for node, pid in zip(nodes, pids, strict=True):
            for command in (
                ["addr", "add", f"{node.address}/24", "dev", "link0"],
                ["link", "set", "link0", "up"],
                # Ray finds its own address by the route to the outside.
                ["route", "add", "default", "dev", "link0"],
            ):
                subprocess.run(["nsenter", "-t", pid, "-n", "ip", *command], check=True)
        yield nodes
    finally:
        for node in nodes:
            node.end()


@contextmanager
def ray_cluster(nodes: Sequence[Node], log: Path, *, gpus: int = 0) -> Iterator[dict[str, str]]:
    """Ray on the nodes, the first is its head; gives the environment of who joins it."""
    folder = tempfile.mkdtemp(prefix="herl-ray-", dir="/tmp")  # short: socket names have a limit
    # Ray's head starts Python through an unquoted shell line, and our path may hold a space.
    Path(folder, "venv").symlink_to(sys.prefix)
    ray = [f"{folder}/venv/bin/python", "-m", "ray.scripts.scripts", "start"]
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A lost node is noticed within seconds.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "5",
    }
    head = f"{nodes[0].address}:{RAY_PORT}"
    roles = [["--head", f"--port={RAY_PORT}", f"--temp-dir={folder}", "--include-dashboard=false"]]
    roles += [[f"--address={head}"] for _ in nodes[1:]]
    started = []
    try:
        for node, role in zip(nodes, roles, strict=True):
            common = [
                f"--node-ip-address={node.address}", "--num-cpus=4", f"--num-gpus={gpus}",
                "--object-store-memory=83886080", "--block", "--disable-usage-stats",
            ]  # fmt: skip
            started.append(node.start([*ray, *role, *common], log=log, **env))
            _wait_for(node, started[-1], log)
        yield env
    finally:
        for process in started:
            process.terminate()
        with suppress(subprocess.TimeoutExpired):  # cut off from the head it would wait for 30 s
            for process in started:
                process.wait(timeout=5)
        for node in nodes:
            for running in node.processes():
                running.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(node: Node, process: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        if any("raylet/raylet" in " ".join(_command(p)) for p in node.processes()):
            return
        time.sleep(0.1)
    raise AssertionError(f"Ray did not start on {node.address}:\n{log.read_text()}")


def _keeper() -> subprocess.Popen[str]:
    ready = "mount -t tmpfs -o size=1g none /dev/shm && ip link set lo up && echo ready"
    keeper = subprocess.Popen(
        ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c",
         f"{ready} && exec sleep 600"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert keeper.stdout is not None and keeper.stdout.readline() == "ready\n"
    return keeper


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # gone meanwhile
        return ""


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
