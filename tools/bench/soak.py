"""Run a tiny model for many steps and report how memory and open files grow.

    python tools/bench/soak.py configs/quickstart_cpu.yaml --out runs/soak train.steps=250

Resident memory and open files of the driver, each trainer rank and each engine process are read
after every step; the slope is the least-squares line's from step `--settle` (50) on, when caches
are filled. Prints a line per process and writes OUT/soak.json. The numbers carry no verdict: on a
step of a tiny model 10 KiB a step is a leak of 1 GiB in 100,000 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"herl_megatron.cli": "driver", "ray::TrainerRank": "rank", "ray::EngineWorker": "engine",
         "VLLM::": "engine process"}  # fmt: skip
_POLL_S = 0.05
_KIB = 1 << 10


@dataclass
class Series:
    """One process: steps done, resident bytes and open files at each look."""

    name: str
    steps: list[int] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)

    def look(self, process: psutil.Process, step: int) -> None:
        """Add what it holds now, if it is still there."""
        try:
            with process.oneshot():
                resident, files = process.memory_info().rss, process.num_fds()
        except psutil.NoSuchProcess:
            return
        self.steps.append(step)
        self.resident_bytes.append(resident)
        self.open_files.append(files)

    def slope(self, values: Sequence[int], settle: int) -> float:
        """Least-squares growth per step from step `settle` on; NaN of fewer than two points."""
        points = [(s, v) for s, v in zip(self.steps, values, strict=True) if s >= settle]
        if len({step for step, _ in points}) < 2:
            return float("nan")
        steps, kept = np.array(points, dtype=np.float64).T
        return float(np.polyfit(steps, kept, 1)[0])


def watch(process: subprocess.Popen[bytes], metrics: Path) -> list[Series]:
    """Look at all processes after each step until the run ends."""
    found: dict[int, tuple[psutil.Process, Series]] = {}
    counts: dict[str, int] = {}
    done = 0
    while process.poll() is None:
        time.sleep(_POLL_S)
        steps = metrics.read_text().count('"reward/mean"') if metrics.exists() else 0
        if steps == done:
            continue
        done = steps
        for one in (psutil.Process(process.pid), *_children(process.pid)):
            role = _role(one)
            if role and one.pid not in found:
                number = counts[role] = counts.get(role, -1) + 1
                found[one.pid] = one, Series(role if role == "driver" else f"{role} {number}")
            if one.pid in found:
                found[one.pid][1].look(one, done)
    return [series for _, series in found.values()]


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _role(process: psutil.Process) -> str:
    try:
        return role_of(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def role_of(command: Sequence[str]) -> str:
    """What a process of a run is, by its command line: Ray names actors in their titles. Empty for
    all others."""
    shown = " ".join(command)
    return next((role for title, role in ROLES.items() if title in shown), "")


def summary(series: Sequence[Series], settle: int) -> dict[str, Mapping[str, float]]:
    """By process: steps seen, MiB at the end, KiB and open files gained per step, open files."""
    return {
        one.name: {
            "steps": one.steps[-1],
            "resident_mib": one.resident_bytes[-1] / (1 << 20),
            "resident_kib_per_step": one.slope(one.resident_bytes, settle) / _KIB,
            "open_files": one.open_files[-1],
            "open_files_per_step": one.slope(one.open_files, settle),
        }
        for one in series
        if one.steps
    }


def main() -> None:
    """Run, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--settle", type=int, default=50, help="steps before the slope begins")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    args = parser.parse_intermixed_args()
    if args.out.exists() and any(args.out.iterdir()):
        sys.exit(f"--out {args.out} is not empty; name a new folder")
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "herl_megatron.cli", "train", args.config, *args.overrides,
             f"run.dir={args.out}", "run.name=run"],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            series = watch(process, args.out / "run/metrics.jsonl")
        finally:
            process.terminate()  # nothing to one that has ended
            code = process.wait()
    if code:
        sys.exit(f"the run ended with exit status {code}, see {args.out}/run.log")
    found = summary(series, args.settle)
    for name, numbers in found.items():
        print(
            f"{name:18} {numbers['resident_mib']:7.0f} MiB"
            f" {numbers['resident_kib_per_step']:+8.1f} KiB/step, {numbers['open_files']:4.0f} open"
            f" files {numbers['open_files_per_step']:+.3f}/step, {numbers['steps']:.0f} steps"
        )
    content = {"summary": found, "series": [asdict(one) for one in series]}
    (args.out / "soak.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
