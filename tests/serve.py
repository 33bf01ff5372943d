"""`vllm serve` on the CPU as a process of its own, gone with its children at the end of a block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from herl_megatron.rollout.vllm.engine_environment import engine_environment
from tests.limits import HANG_S


class Server:
    """A running `vllm serve`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"

    def counted(self) -> float:
        """Finished requests, as the server counts them."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30)
        lines = page.read().decode().splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success")
        )


@contextmanager
def vllm_serve(model: Path, *options: str, name: str, log: Path) -> Iterator[Server]:
    """Serve the folder `model` as `name`; at the end its process group is gone and its port free.

    options: of the command, beside model, name and port.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *options,
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | engine_environment(device="cpu", threads=1),
        )
    try:
        _wait_until_up(process, port, log)
        yield Server(port)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        _kill_group(process.pid)
        process.wait(timeout=HANG_S)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"vllm serve did not come up:\n{log.read_text()[-3000:]}")


def _kill_group(group: int) -> None:
    """What is left of it; a zombie that its parent has not asked for yet is gone."""
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        if not any(_is_alive_in(group, process) for process in psutil.process_iter()):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.1)
    raise AssertionError("a process of the server is left")


def _is_alive_in(group: int, process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
