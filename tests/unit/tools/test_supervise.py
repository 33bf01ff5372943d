"""The supervisor of both commands: exit codes, and no process left behind."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SUPERVISE = Path(__file__).parents[3] / "tools" / "_supervise.py"
# A grandchild in a session of its own, as Ray's daemons are; it prints its id and stays.
DAEMON = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(300)"
PARENT = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {DAEMON!r}])\n"
    "time.sleep({stay_s})"
)


def start(code: str, *, grace_s: float = 15) -> subprocess.Popen[str]:
    """The supervisor around `python -c code`, with a shorter wait for what is left."""
    launcher = (
        f"import runpy, sys; sys.argv = sys.argv[1:]; m = runpy.run_path({str(SUPERVISE)!r});"
        f"m['main'].__globals__['_GRACE_S'] = {grace_s}; sys.exit(m['main']())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", launcher, "supervise", sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def gone(pid: int, within_s: float = 10) -> bool:
    """Whether it has ended; under another supervisor it may wait to be collected (a zombie)."""
    end = time.monotonic() + within_s
    while not (ended := _ended(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    return ended


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + 9),
    ],
)
def test_exit_code_is_the_commands(code: str, expected: int) -> None:
    process = start(code)
    assert process.wait(timeout=30) == expected


def test_what_ends_by_itself_is_waited_for() -> None:
    """A daemon that needs a moment to notice is not an error."""
    process = start(PARENT.format(stay_s=0.5).replace("time.sleep(300)", "time.sleep(1.5)"))
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert gone(int(output), within_s=0)


def test_a_daemon_left_behind_is_killed_and_fails_the_run() -> None:
    process = start(PARENT.format(stay_s=0.5), grace_s=0.5)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 70
    assert gone(int(output), within_s=0)
    assert "processes left behind" in errors
    assert output.strip() in errors


def test_sigterm_ends_the_command_and_its_daemon() -> None:
    process = start(PARENT.format(stay_s=300), grace_s=0.5)
    assert process.stdout is not None
    daemon = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert gone(daemon, within_s=0)


def test_killing_the_shell_ends_everything() -> None:
    words = [sys.executable, str(SUPERVISE), sys.executable, "-c", DAEMON]
    command = f"{shlex.join(words)}; true"  # with one command alone bash would become it
    shell = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    daemon = int(shell.stdout.readline())
    (supervisor,) = psutil.Process(shell.pid).children()
    shell.kill()
    shell.wait(timeout=10)
    assert gone(daemon)
    assert gone(supervisor.pid)
