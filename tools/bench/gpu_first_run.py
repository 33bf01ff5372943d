"""Everything that wants a GPU, in one command within a time limit, into one JSON file.

    python tools/bench/gpu_first_run.py --out first_run.json  # all parts, at most 570 s
    python tools/bench/gpu_first_run.py --parts ipc colocated --limit-s 300
    python tools/bench/gpu_first_run.py --parts step --tiny   # dry run without a GPU

NOT RUN YET on any GPU. Each part is a process group of its own with a time limit: one that fails,
hangs or runs out of memory leaves the others' numbers alone. The file is written after every part.
Steps are `bench_gpu_step.py`'s; the rest are files of tests/gpu, with what their cases recorded
(`record_property`): outcome, seconds, and for whole runs the metrics of every step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_BENCH = (sys.executable, "tools/bench/bench_gpu_step.py")
_TESTS = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
PARTS: dict[str, tuple[tuple[str, ...], int]] = {
    "ipc": ((*_TESTS, "tests/gpu/test_transport_ipc.py"), 90),
    "step": ((*_BENCH, "--shape", "1.5b", "--pairs", "15"), 180),
    "colocated": ((*_TESTS, "tests/gpu/test_colocated.py"), 300),
    "step fp8": (
        (*_BENCH, "--shape", "4096", "--pairs", "15", "--no-compile",
         "--fp8", "tensorwise", "blockwise"), 180,
    ),
    "precision": ((*_TESTS, "tests/gpu/test_precision.py"), 240),
    "experts": ((*_TESTS, "tests/gpu/test_experts.py"), 240),
}  # fmt: skip
"""Name: command and its limit in seconds, in the order in which they are most worth having."""
_TINY = ("--shape", "tiny", "--tokens", "256", "--length", "64", "--pairs", "3", "--no-compile")
_TAIL = 3000  # characters of a part's output


def run_part(command: tuple[str, ...], *, result: Path, limit_s: float) -> dict[str, Any]:
    """Run one part and read what it left in `result` (JSON, or JUnit's XML of a test run)."""
    is_test = "pytest" in command
    command = (*command, f"--junitxml={result}") if is_test else (*command, "--out", str(result))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = f"ended after {limit_s:.0f} s"
        try:
            os.killpg(process.pid, signal.SIGKILL)  # and what it left running
        except ProcessLookupError:
            pass
        process.wait()
        output.seek(0)
        told = output.read()[-_TAIL:]
    answer: dict[str, Any] = {"exit": code, "seconds": round(time.monotonic() - begin, 1)}
    if result.exists():
        answer["result"] = cases(result) if is_test else json.loads(result.read_text())
    if code != 0:
        answer["output"] = told
    return answer


def cases(junit: Path) -> list[dict[str, Any]]:
    """What a test run says of its cases."""
    found = []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        troubles = [child for child in case if child.tag in ("failure", "error", "skipped")]
        found.append(
            {
                "case": case.attrib["name"],
                "outcome": troubles[0].tag if troubles else "passed",
                "seconds": float(case.attrib["time"]),
                "why": (troubles[0].attrib.get("message") or "")[:500] if troubles else "",
                "recorded": {
                    p.attrib["name"]: p.attrib["value"] for p in case.iter("property")
                },
            }
        )  # fmt: skip
    return found


def main() -> None:
    """Run the parts in order while there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit-s", type=float, default=570, help="of all parts together")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in the steps")
    parser.add_argument("--out", type=Path, default=Path("gpu_first_run.json"))
    args = parser.parse_args()
    if os.path.lexists(args.out):
        parser.error(f"--out {args.out} is there already; name another file")
    end = time.monotonic() + args.limit_s
    answers: dict[str, Any] = {}
    for name in args.parts:
        command, limit_s = PARTS[name]
        if args.tiny and command[:2] == _BENCH:
            command = (*_BENCH, *_TINY)
        left_s = min(limit_s, end - time.monotonic())
        if left_s < 1:
            answers[name] = {"exit": "not started: no time left"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            answers[name] = run_part(command, result=Path(folder) / "result", limit_s=left_s)
        args.out.write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
        sys.stdout.write(f"{name}: {answers[name]['exit']} in {answers[name]['seconds']} s\n")
    args.out.write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(answers, indent=2) + "\n")


if __name__ == "__main__":
    main()
