"""Kill runs at random moments, resume them, and compare with the run that nobody touched.

    python tools/kill_test.py configs/quickstart_cpu.yaml --points 100 --out runs/kill \
        train.steps=8 checkpoint.every=2

At each point one process (the driver, a trainer rank, a rollout engine or a scorer) gets SIGKILL,
either while the run starts or at a random moment of a random step. The run is then resumed with
`run.resume=true` until it ends, and its metrics (but those that are times), rollouts and exported
policy must equal the untouched run's byte for byte. A run that survives the loss of a worker is
compared as it is. Exit status 1 if any point differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = {
    "driver": "herl_megatron.cli",
    "trainer": "ray::TrainerRank",
    "engine": "ray::EngineWorker",
    "scorer": "ray::_Worker",
}
_MARK = "HERL_KILL_TEST"
_SHARE_AT_START = 0.15  # of all kills; the others fall into a step
_LIMIT_S = 600.0
_GONE_S = 20.0


class Run:
    """One `herl train` process, whose descendants carry a mark in their environment."""

    def __init__(self, name: str, out: Path, arguments: list[str], *extra: str) -> None:
        self.folder = out / name
        self._mark = f"{os.getpid()}-{name}-{time.monotonic_ns()}"
        self._log = (out / f"{name}.log").open("a", encoding="utf-8")
        command = [sys.executable, "-m", "herl_megatron.cli", "train", *arguments]
        self.process = subprocess.Popen(
            [*command, f"run.dir={out}", f"run.name={name}", *extra],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {_MARK: self._mark, "PYTHONPATH": str(ROOT)},
        )

    def processes(self) -> list[psutil.Process]:
        """Everything that this run has started and that still lives."""
        found = []
        for process in psutil.process_iter():
            try:
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def wait_for_steps(self, steps: int) -> None:
        """Return when `steps` steps are in metrics.jsonl, or the run has ended."""
        path = self.folder / "metrics.jsonl"
        while self.process.poll() is None:
            if path.exists() and path.read_text().count('"reward/mean"') >= steps:
                return
            time.sleep(0.02)

    def end(self) -> tuple[int, int]:
        """Wait; returns exit code and how many processes were left and had to be killed."""
        code = self.process.wait(timeout=_LIMIT_S)
        limit = time.monotonic() + _GONE_S
        while (left := self.processes()) and time.monotonic() < limit:
            time.sleep(0.2)
        for process in left:
            process.kill()
        self._log.close()
        return code, len(left)


def kill(run: Run, victim: str, rng: random.Random) -> bool:
    """SIGKILL one process of the kind; False if there is none (yet, or any more)."""
    if victim == "driver":
        if run.process.poll() is None:
            run.process.kill()
            return True
        return False
    title = VICTIMS[victim]
    found = [p for p in run.processes() if any(title in part for part in _command(p))]
    if found:
        rng.choice(found).kill()
    return bool(found)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def differences(run: Path, reference: Path) -> list[str]:
    """What of a run's results is not as in the reference."""
    found = []
    lines, wanted = _metrics(run), _metrics(reference)
    if len(lines) != len(wanted):
        found.append(f"{len(lines)} lines of metrics instead of {len(wanted)}")
    for number, (line, want) in enumerate(zip(lines, wanted, strict=False)):
        keys = sorted(k for k in line.keys() | want.keys() if line.get(k) != want.get(k))
        if keys:
            found.append(f"metrics line {number + 1}: {', '.join(keys)}")
    for part in ("rollouts", "policy"):
        files, expected = _files(run / part), _files(reference / part)
        found += [
            f"{part}/{name}"
            for name in sorted(files.keys() | expected.keys())
            if files.get(name) != expected.get(name)
        ]
    return found


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what measures time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]


def _files(folder: Path) -> dict[str, bytes]:
    files = folder.rglob("*") if folder.exists() else ()
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file()}


def one_point(
    number: int, victim: str, arguments: list[str], out: Path, reference: Path, timing: Any
) -> tuple[str, list[str]]:
    """Kill, resume, compare; returns what happened in words, and the differences."""
    rng = random.Random(number)
    steps, start_s, step_s = timing
    name = f"point_{number:03d}"
    shutil.rmtree(out / name, ignore_errors=True)
    run = Run(name, out, arguments, "run.resume=true")
    at_start = victim == "driver" and rng.random() < _SHARE_AT_START
    step = 0 if at_start else rng.randrange(1, steps + 1)
    run.wait_for_steps(step)
    time.sleep(rng.uniform(0, start_s if at_start else step_s))
    hit = kill(run, victim, rng)
    code, left = run.end()
    resumed_from = [p.name for p in sorted((out / name / "checkpoints").glob("step_*"))[-1:]]
    moment = "during the start" if at_start else f"after step {step}"
    words = f"{victim} killed {moment}" if hit else f"{victim} already gone {moment}"
    words += f", exit code {code}" + (f", {left} processes left" if left else "")
    if code != 0:
        again = Run(name, out, arguments, "run.resume=true")
        code, _ = again.end()
        words += f", resumed from {resumed_from[0] if resumed_from else 'the beginning'}"
    if code != 0:
        return words, [f"the resumed run ended with exit code {code}, see {name}.log"]
    return words, differences(out / name, reference)


def main() -> None:
    """Run the reference, then all points; print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="key=value for every run")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first point")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    arguments = [args.config, *args.overrides]
    shutil.rmtree(args.out / "reference", ignore_errors=True)
    start = time.monotonic()
    reference = Run("reference", args.out, arguments)
    reference.wait_for_steps(1)
    start_s = time.monotonic() - start
    code, _ = reference.end()
    if code != 0:
        sys.exit(f"the untouched run ended with exit code {code}, see {args.out}/reference.log")
    rows = _metrics(reference.folder)
    steps = sum("reward/mean" in row for row in rows)
    seconds = json.loads((reference.folder / "summary.json").read_text())["seconds"]
    in_steps = sum(seconds[phase] for phase in ("rollout", "train", "weight_sync", "rows"))
    timing = (steps, start_s, in_steps / steps)
    print(f"untouched run: {steps} steps of {timing[2]:.2f} s after {start_s:.1f} s", flush=True)
    bad = 0
    for number in range(args.first, args.first + args.points):
        victim = args.victims[number % len(args.victims)]
        words, wrong = one_point(number, victim, arguments, args.out, reference.folder, timing)
        bad += bool(wrong)
        print(f"{number:3d} {words}: {'; '.join(wrong[:5]) or 'equal'}", flush=True)
        if not wrong:
            shutil.rmtree(args.out / f"point_{number:03d}")
    print(f"{args.points - bad} of {args.points} points equal the untouched run")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
