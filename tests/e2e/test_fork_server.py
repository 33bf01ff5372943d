"""What runs in a forked process is told apart from `python -m` by nothing but its start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.limits import HANG_S

pytestmark = pytest.mark.e2e
MODULE = """
import json, os, sys
print(json.dumps([__name__, os.getcwd(), sys.argv, os.environ["OWN"], sys.path[0]]), flush=True)
print("said", file=sys.stderr, flush=True)
if sys.argv[1] == "wait":
    import time
    print(os.getpid(), flush=True)
    time.sleep(600)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "forked_module.py").write_text(MODULE)
    return tmp_path


def test_folder_environment_arguments_output_and_exit_code(
    module: Path, fork_server: list[str]
) -> None:
    forked, real = (
        subprocess.run(
            [*python, "forked_module", "7", "a b"], cwd=module, capture_output=True, text=True,
            timeout=HANG_S, env=os.environ | {"OWN": "value"},
        )
        for python in (fork_server, [sys.executable, "-m"])
    )  # fmt: skip
    assert (forked.returncode, forked.stdout, forked.stderr) == (7, real.stdout, real.stderr)
    assert "value" in forked.stdout and forked.stderr == "said\n"


def test_it_ends_with_whoever_started_it(module: Path, fork_server: list[str]) -> None:
    started = subprocess.Popen(
        [*fork_server, "forked_module", "wait"], cwd=module, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OWN": ""},
    )  # fmt: skip
    assert started.stdout is not None
    started.stdout.readline()
    pid = int(started.stdout.readline())
    started.kill()
    started.communicate(timeout=HANG_S)
    end = time.monotonic() + HANG_S
    while psutil.pid_exists(pid):
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.05)
