"""Kill runs at random moments, resume them, and compare with the run that nobody touched.

    python tools/bench/kill_test.py configs/quickstart_cpu.yaml --points 100 --parallel 2 \
        --out runs/kill train.steps=6 train.eval_every=0 checkpoint.every=2 \
        rollout.stall_timeout_s=10

At each point one process (the driver, a trainer rank, a rollout engine or a scorer) gets SIGKILL,
or a rollout engine gets SIGSTOP (`hang`), either while the run starts or at a random moment of a
random step. A run that goes on, because it starts an engine or a scorer anew, is compared as it is;
one that ends is resumed with `run.resume=true`. Metrics (but those that are times or count the
restarts), rollouts and exported policy must equal the untouched run's byte for byte, and no
process may be left. (With `rollout.mode: sync`; the other modes go on too, but depend on when an
engine was lost.) `--command sft` and `dpo` do it with those loops, which have engines and scorers
where they evaluate. Prints a line per point and a table; OUT/kill_test.json holds both. Exit status
1 if any point differs or leaves a process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from herl_megatron.observability.metrics import is_measured

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = {
    "driver": "herl_megatron.cli",
    "trainer": "ray::TrainerRank",
    "engine": "ray::EngineWorker",
    "hang": "ray::EngineWorker",
    "scorer": "ray::_Worker",
}
STEP_METRIC = {"train": "reward/mean", "sft": "sft/loss", "dpo": "dpo/loss"}
"""By command, what each of its steps logs."""
_MARK = "HERL_KILL_TEST"
_COUNTS = {"rollout/engine_restarts", "scoring/worker_crashes"}  # of what the kill itself does
_SHARE_AT_START = 0.15  # of all kills of a driver; the others fall into a step
_LIMIT_S = 900.0
_GONE_S = 20.0
_KEYS_SHOWN = 4


class Run:
    """One `herl` process, whose descendants carry a mark in their environment."""

    def __init__(self, name: str, out: Path, arguments: list[str], *extra: str) -> None:
        """arguments: command, configuration and overrides."""
        self.folder = out / name
        self._step_metric = f'"{STEP_METRIC[arguments[0]]}"'
        self._mark = f"{os.getpid()}-{name}-{time.monotonic_ns()}"
        self._log = (out / f"{name}.log").open("a", encoding="utf-8")
        command = [sys.executable, "-m", "herl_megatron.cli", *arguments]
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
            if path.exists() and path.read_text().count(self._step_metric) >= steps:
                return
            time.sleep(0.02)

    def end(self) -> tuple[int, int]:
        """Wait; returns exit code (-1: over the limit) and how many processes had to be killed."""
        try:
            code = self.process.wait(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = -1
        limit = time.monotonic() + _GONE_S
        while (left := self.processes()) and time.monotonic() < limit:
            time.sleep(0.2)
        for process in left:
            process.kill()
        self._log.close()
        return code, len(left)


def strike(run: Run, victim: str, rng: random.Random) -> bool:
    """SIGKILL (or SIGSTOP) one process of the kind; False if there is none (yet, or any more)."""
    if victim == "driver":
        found = [run.process] if run.process.poll() is None else []
    else:
        title = VICTIMS[victim]
        found = [p for p in run.processes() if any(title in part for part in _command(p))]
    if found:
        chosen = rng.choice(found)
        chosen.send_signal(signal.SIGSTOP if victim == "hang" else signal.SIGKILL)
    return bool(found)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
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
            shown = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
            found.append(f"metrics line {number + 1}: {shown}")
    for part in ("rollouts", "policy"):
        files, expected = _files(run / part), _files(reference / part)
        found += [
            f"{part}/{name}"
            for name in sorted(files.keys() | expected.keys())
            if files.get(name) != expected.get(name)
        ]
    return found


def _metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what measures time or counts what the kill did."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = {key for row in rows for key in row if is_measured(key)} | _COUNTS
    return [{key: row[key] for key in row.keys() - left_out} for row in rows]


def _files(folder: Path) -> dict[str, bytes]:
    files = folder.rglob("*") if folder.exists() else ()
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file()}


@dataclass
class Point:
    """What happened at one point; `end` is `went on`, `resumed`, `failed` or `not hit`."""

    number: int
    victim: str
    moment: str = ""
    end: str = "failed"
    codes: list[int] = field(default_factory=list)
    resumed_from: str = ""
    left: int = 0
    restarts: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Equal to the untouched run, and nothing left behind."""
        return not self.wrong and not self.left

    def __str__(self) -> str:
        words = [f"{self.victim} {self.moment}", f"{self.end} (exit codes {self.codes})"]
        words += [f"from {self.resumed_from}"] if self.resumed_from else []
        words += [f"{self.restarts} engine restarts"] if self.restarts else []
        words += [f"{self.left} PROCESSES LEFT"] if self.left else []
        result = "; ".join(self.wrong[:5]) or "equal"
        return f"{self.number:3d} {', '.join(words)}, {self.seconds:.0f} s: {result}"


@dataclass(frozen=True)
class Untouched:
    """The reference: its folder, steps, seconds until its first step is done and of one step."""

    folder: Path
    steps: int
    start_s: float
    step_s: float


def one_point(
    number: int, victim: str, arguments: list[str], out: Path, reference: Untouched
) -> Point:
    """Kill, resume if need be, compare."""
    rng, begin, point = random.Random(number), time.monotonic(), Point(number, victim)
    name = f"point_{number:03d}"
    run = Run(name, out, arguments, "run.resume=true")
    at_start = victim == "driver" and rng.random() < _SHARE_AT_START
    step = 0 if at_start else rng.randrange(1, reference.steps + 1)
    run.wait_for_steps(step)
    time.sleep(rng.uniform(0, reference.start_s if at_start else reference.step_s))
    hit = strike(run, victim, rng)
    point.moment = "during the start" if at_start else f"after step {step}"
    code, point.left = run.end()
    point.codes.append(code)
    if code != 0:
        saved = sorted((out / name / "checkpoints").glob("step_*"))
        point.resumed_from = saved[-1].name if saved else "the beginning"
        code, left = Run(name, out, arguments, "run.resume=true").end()
        point.codes.append(code)
        point.left += left
    point.seconds = round(time.monotonic() - begin, 1)
    if code != 0:
        point.wrong = [f"the run ended with exit code {code}, see {name}.log"]
        return point
    point.end = "resumed" if point.resumed_from else "went on" if hit else "not hit"
    point.restarts = _summary(out / name)["engine_restarts"]
    point.wrong = differences(out / name, reference.folder)
    return point


def _summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def untouched_run(arguments: list[str], out: Path) -> Untouched:
    """Run the reference; exits if it fails."""
    start = time.monotonic()
    run = Run("reference", out, arguments)
    run.wait_for_steps(1)
    start_s = time.monotonic() - start
    code, _ = run.end()
    if code != 0:
        sys.exit(f"the untouched run ended with exit code {code}, see {out}/reference.log")
    steps = sum(STEP_METRIC[arguments[0]] in row for row in _metrics(run.folder))
    seconds = _summary(run.folder)["seconds"]
    in_steps = sum(seconds.get(phase, 0.0) for phase in ("rollout", "train", "weight_sync", "rows"))
    return Untouched(run.folder, steps, start_s, in_steps / steps)


def all_points(
    numbers: range, victims: Sequence[str], parallel: int, work: tuple[list[str], Path, Untouched]
) -> Iterator[Point]:
    """The points in order, `parallel` at a time."""
    with ThreadPoolExecutor(parallel) as pool:
        futures = [
            pool.submit(one_point, number, victims[number % len(victims)], *work)
            for number in numbers
        ]
        for future in futures:
            yield future.result()


def table(points: Sequence[Point]) -> Table:
    """One line per kind of victim."""
    ends = ("went on", "resumed", "not hit", "failed")
    shown = Table(title="kill points", title_justify="left")
    for column in ("victim", "points", "equal", *ends, "engine restarts", "processes left"):
        shown.add_column(column, justify="left" if column == "victim" else "right")
    for victim in [*dict.fromkeys(point.victim for point in points), "all"]:
        some = [point for point in points if victim in (point.victim, "all")]
        counts = [len(some), sum(not point.wrong for point in some)]
        counts += [sum(point.end == end for point in some) for end in ends]
        counts += [sum(point.restarts for point in some), sum(point.left for point in some)]
        shown.add_row(victim, *map(str, counts))
    return shown


def main() -> None:
    """Run the reference, then all points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="key=value for every run")
    parser.add_argument("--command", choices=STEP_METRIC, default="train")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first point")
    parser.add_argument("--parallel", type=int, default=1, help="points at the same time")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--out", type=Path, required=True, help="new folder, of all runs")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if any(args.out.iterdir()):  # what is in it would be taken for runs of this test, and removed
        sys.exit(f"--out {args.out} is not empty; name a new folder")
    arguments = [args.command, args.config, *args.overrides]
    begin = time.monotonic()
    reference = untouched_run(arguments, args.out)
    print(
        f"untouched run: {reference.steps} steps of {reference.step_s:.2f} s, the first one done"
        f" after {reference.start_s:.1f} s",
        flush=True,
    )
    numbers = range(args.first, args.first + args.points)
    points = []
    work = (arguments, args.out, reference)
    for point in all_points(numbers, args.victims, args.parallel, work):
        points.append(point)
        print(point, flush=True)
        if point.good:
            shutil.rmtree(args.out / f"point_{point.number:03d}")
    good = sum(point.good for point in points)
    Console(width=110).print(table(points))
    minutes = (time.monotonic() - begin) / 60
    print(f"{good} of {len(points)} points equal the untouched run; {minutes:.1f} minutes")
    content = {
        "command": arguments,
        "untouched": asdict(reference) | {"folder": str(reference.folder)},
        "minutes": round(minutes, 2),
        "good": good,
        "points": [asdict(point) for point in points],
    }
    (args.out / "kill_test.json").write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(0 if good == len(points) else 1)


if __name__ == "__main__":
    main()
