"""A part that fails or hangs costs the others nothing and says why."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil

from tests.limits import HANG_S
from tools.bench.gpu_first_run import run_part


def test_parts_that_work_fail_and_hang(tmp_path: Path) -> None:
    def run(code: str, name: str) -> dict[str, object]:
        return run_part((sys.executable, "-c", code), result=tmp_path / name, limit_s=2)

    works = run("import sys; open(sys.argv[2], 'w').write('{\"mfu\": 0.4}')", "works")
    assert (works["exit"], works["result"]) == (0, {"mfu": 0.4})
    fails = run("print('out of memory'); raise SystemExit(3)", "fails")
    assert (fails["exit"], fails["output"]) == (3, "out of memory\n")
    assert "result" not in fails
    pid_file = tmp_path / "pid"
    child = f"open({str(pid_file)!r}, 'w').write(str(p.pid))"
    hangs = run(
        "import subprocess, time\n"
        f"p = subprocess.Popen(['sleep', '600']); {child}; time.sleep(600)",
        "hangs",
    )
    assert hangs["exit"] == "ended after 2 s"
    end = time.monotonic() + 10  # the signal was sent; a busy machine takes its time
    while (alive := _is_alive(pid_file.read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive, "a child was left behind"


def _is_alive(pid: str) -> bool:
    try:
        return bool(psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_cases_of_a_test_run_keep_what_they_recorded(tmp_path: Path) -> None:
    tests = tmp_path / "test_it.py"
    tests.write_text(
        "def test_good(record_property):\n    record_property('parity', 0.01)\n"
        "def test_bad():\n    assert 1 == 2, 'worse'\n"
    )
    command = (sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", str(tests))
    answer = run_part(command, result=tmp_path / "junit.xml", limit_s=HANG_S)
    good, bad = answer["result"]
    assert (good["outcome"], good["recorded"]) == ("passed", {"parity": "0.01"})
    assert (bad["outcome"], answer["exit"]) == ("failure", 1) and "worse" in bad["why"]
