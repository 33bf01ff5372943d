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

from tests.limits import HANG_S

SUPERVISE = Path(__file__).parents[3] / "tools" / "_supervise.py"
# A grandchild in a session of its own, as Ray's daemons are; it prints its id and stays.
DAEMON = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(300)"
PARENT = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {DAEMON!r}])\n"
    "time.sleep({stay_s})"
)


def start_words(code: str, *, grace_s: float) -> list[str]:
    """The supervisor around `python -c code`, with a shorter wait for what is left."""
    launcher = (
        f"import runpy, sys; sys.argv = sys.argv[1:]; m = runpy.run_path({str(SUPERVISE)!r});"
        f"m['main'].__globals__['_GRACE_S'] = {grace_s}; sys.exit(m['main']())"
    )
    return [sys.executable, "-c", launcher, "supervise", sys.executable, "-c", code]


def start(code: str, *, grace_s: float = 15) -> subprocess.Popen[str]:
    """The supervisor, started."""
    words = start_words(code, grace_s=grace_s)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(pid: int, within_s: float = 10) -> bool:
    """Whether it has ended; under another supervisor it may wait to be collected (a zombie)."""
    end = time.monotonic() + within_s
    while not (ended := _ended(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    return ended


def _ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
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
    assert process.wait(timeout=HANG_S) == expected


def test_what_ends_by_itself_is_waited_for() -> None:
    """A daemon that needs a moment to notice is not an error."""
    process = start(PARENT.format(stay_s=0.5).replace("time.sleep(300)", "time.sleep(1.5)"))
    output, errors = process.communicate(timeout=HANG_S)
    assert (process.returncode, errors) == (0, "")
    assert gone(int(output), within_s=0)


def test_a_daemon_left_behind_is_killed_and_fails_the_run() -> None:
    process = start(PARENT.format(stay_s=0.5), grace_s=0.5)
    output, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 70
    assert gone(int(output), within_s=0)
    assert "processes left behind" in errors
    assert output.strip() in errors


def zombies_of(pid: int) -> list[int]:
    """Its direct children that wait to be collected."""
    return [
        child.pid
        for child in psutil.Process(pid).children()
        if child.status() == psutil.STATUS_ZOMBIE
    ]


def test_adopted_processes_are_collected_while_the_command_runs() -> None:
    """A child that ends leaves a daemon, which then ends too: nobody else would collect it."""
    short_lived = DAEMON.replace("time.sleep(300)", "time.sleep(0.3)")
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {short_lived!r}])"
    process = start(
        f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {child!r}])\n"
        "time.sleep(300)"
    )
    assert process.stdout is not None
    daemon = int(process.stdout.readline())
    end = time.monotonic() + 10
    while psutil.pid_exists(daemon) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(daemon)
    assert zombies_of(process.pid) == []
    process.terminate()
    assert process.wait(timeout=HANG_S) == 128 + signal.SIGTERM


def test_killed_processes_and_what_they_had_not_collected_are_collected() -> None:
    """The daemon has a zombie of its own when it is killed; the supervisor ends by itself, so its
    children are looked at through its parent, who would adopt what it leaves."""
    forks = "import os, time; os.fork() or os._exit(0); " + DAEMON
    adopter = subprocess.run(
        [sys.executable, "-c",
         "import ctypes, subprocess, sys, psutil\n"
         "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
         "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL,"
         " stderr=subprocess.DEVNULL).returncode\n"
         "print(code, [c.pid for c in psutil.Process().children(recursive=True)])",
         *start_words(PARENT.replace(repr(DAEMON), repr(forks)).format(stay_s=0.5), grace_s=0.5)],
        capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert adopter.stdout.strip() == "70 []", adopter.stderr


def test_sigterm_ends_the_command_and_its_daemon() -> None:
    process = start(PARENT.format(stay_s=300), grace_s=0.5)
    assert process.stdout is not None
    daemon = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG_S) == 128 + signal.SIGTERM
    assert gone(daemon, within_s=0)


def test_killing_the_shell_ends_everything() -> None:
    words = [sys.executable, str(SUPERVISE), sys.executable, "-c", DAEMON]
    command = f"{shlex.join(words)}; true"  # with one command alone bash would become it
    shell = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    daemon = int(shell.stdout.readline())
    (supervisor,) = psutil.Process(shell.pid).children()
    shell.kill()
    shell.wait(timeout=HANG_S)
    assert gone(daemon)
    assert gone(supervisor.pid)
