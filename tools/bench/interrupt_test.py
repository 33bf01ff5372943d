"""Press Ctrl-C at every moment of a run, once and twice, and see what it leaves.

    python tools/bench/interrupt_test.py configs/quickstart_cpu.yaml --out runs/interrupts \
        train.steps=4 checkpoint.every=2

The signal goes to the whole process group, as a terminal sends it. Afterwards there may be no
process of the run, nothing of it in /dev/shm, no session folder of Ray's, no half-written file in
its folder, and each checkpoint and policy that is there must be whole. Prints a line per point and
a count; exit status 1 if any left something.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors.torch import load_file

from herl_megatron.files.manifest import damage
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.models.hf_reader import HFFolder
from herl_megatron.observability.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
_MARK = "HERL_INTERRUPT_TEST"
_LIMIT_S = 900.0  # of a run on a machine that does other things too
_GONE_S = 60.0  # until the last process must have ended
_BETWEEN_S = 0.3  # two presses
_POLL_S = 0.002
_INTERRUPTED = 130


def _steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"reward/mean"') if path.exists() else 0


def _starting(run: Path) -> bool:
    return any("ray::TrainerRank" in " ".join(_command(p)) for p in _marked(run.name))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "start": _starting,
    "rollout": lambda run: _steps(run) > 0,
    "train": lambda run: (run / "rollouts/step_000001.jsonl").exists(),
    "checkpoint": lambda run: any((run / "checkpoints").glob(".step_*.partial")),
    "export": lambda run: (run / ".policy.partial").exists(),
}
"""When a run's folder shows that the moment has come."""


@dataclass(frozen=True)
class Point:
    """What one interrupted run left; `code`: its exit status."""

    moment: str
    times: int
    code: int
    seconds: float
    left: tuple[str, ...]

    def __str__(self) -> str:
        what = "; ".join(self.left) or "nothing left"
        return (
            f"{self.moment}, {self.times} x Ctrl-C: exit status {self.code}, ended after"
            f" {self.seconds:.1f} s: {what}"
        )


def interrupted(moment: str, times: int, arguments: Sequence[str], out: Path) -> Point:
    """Run, interrupt at the moment, look at what is left."""
    run = out / f"{moment}_{times}"
    with (out / f"{run.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "herl_megatron.cli", "train", *arguments, f"run.dir={out}",
             f"run.name={run.name}"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {_MARK: run.name, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        end = time.monotonic() + _LIMIT_S
        while not MOMENTS[moment](run) and process.poll() is None and time.monotonic() < end:
            time.sleep(_POLL_S)
        pressed = time.monotonic()
        for press in range(times):
            if press:
                time.sleep(_BETWEEN_S)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        try:
            code = process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    seconds = time.monotonic() - pressed
    end = time.monotonic() + _GONE_S
    while (marked := _marked(run.name)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [f"process {' '.join(_command(p))[:80]}" for p in marked]
    for rest in marked:
        rest.kill()
    left += map(str, _shared(run.name, process.pid))
    left += list(_torn(run))
    if code != _INTERRUPTED:
        left.append(f"exit status {code} instead of {_INTERRUPTED}: {out / run.name}.log")
    return Point(moment, times, code, seconds, tuple(left))


def _shared(name: str, pid: int) -> Iterator[Path]:
    """What the run and its Ray keep outside of the run's folder."""
    yield from Path("/dev/shm").glob(f"*herl-weights-{name}-*")
    for parent in {Path("/tmp"), Path(tempfile.gettempdir())}:
        yield from parent.glob(f"herl-ray-*/session_*_{pid}")
        yield from parent.glob(f"ray/session_*_{pid}")


def _torn(run: Path) -> Iterator[str]:
    """Files that are not whole."""
    if not run.exists():
        return
    for path in run.rglob("*"):
        if path.name.endswith((".partial", ".tmp")):
            yield f"half-written {path}"
    if (run / "metrics.jsonl").exists():
        read_metrics(run / "metrics.jsonl")  # raises at a line that is not whole
    for folder in (run / "checkpoints").glob("step_*"):
        if problem := damage(folder):
            yield f"{folder}: {problem}"
    policy = run / "policy"
    if policy.exists():
        HFFolder(policy).check(read_architecture(str(policy)))
        for shard in policy.glob("*.safetensors"):
            load_file(shard)  # raises where it is cut short


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(_MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    """All points, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="key=value for every run")
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=list(MOMENTS))
    parser.add_argument("--times", nargs="+", type=int, default=[1, 2], help="presses")
    parser.add_argument("--out", type=Path, required=True, help="new folder, of all runs")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if any(args.out.iterdir()):
        sys.exit(f"--out {args.out} is not empty; name a new folder")
    arguments = [args.config, *args.overrides, "checkpoint.every=1"]
    points = []
    for moment in args.moments:
        for times in args.times:
            points.append(interrupted(moment, times, arguments, args.out.resolve()))
            print(points[-1], flush=True)
    good = sum(not point.left for point in points)
    print(f"{good} of {len(points)} points left nothing")
    sys.exit(0 if good == len(points) else 1)


if __name__ == "__main__":
    main()
