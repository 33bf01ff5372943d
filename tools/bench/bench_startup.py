"""How long a CPU run takes from the command to the first rollout, and CPU time by process.

    python tools/bench/bench_startup.py

A run of one step on a random toy model, on this machine: one rank, one engine, one scoring process.
CPU seconds are of each process over its whole life, the step and the export included, read twice a
second, so that the last moments of each are missing. The first run is not counted: it compiles and
reads from disk what the others find in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from herl_megatron.data.toy_files import write_toy_task
from tools.bench._bench import Row, interval_text, machine, median_interval, report
from tools.bench._out import new_file
from tools.bench.soak import role_of

ROOT = Path(__file__).resolve().parents[2]
GOAL_S = 15.0
_MARK = "HERL_BENCH_STARTUP"
_PERIOD_S = 0.5
_RAY = "Ray's own"


@dataclass(frozen=True)
class Start:
    """One run. cpu_s: seconds of user and system time by kind of process."""

    to_first_rollout_s: float
    wall_s: float
    cpu_s: dict[str, float]


def kind_of(command: Sequence[str]) -> str:
    """`soak.role_of`, the scoring processes beside it; what remains is Ray's."""
    return role_of(command) or ("scorer" if "ray::_Worker" in " ".join(command) else _RAY)


def measure(task: Path, folder: Path) -> Start:
    """Run one step in `folder`.

    Raises:
        RuntimeError: the run failed; with the end of what it printed.
    """
    mark = uuid.uuid4().hex
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
             "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), _MARK: mark}  # fmt: skip
    config = str(ROOT / "configs/quickstart_cpu.yaml")
    command = [
        sys.executable, "-m", "herl_megatron.cli", "train", config,
        f"model.path={task}/model", f"data.train={task}/train.jsonl", "data.eval=",
        f"run.dir={folder}", "run.name=run", "train.steps=1", "train.eval_every=0",
        "train.prompts_per_step=4", "train.prompts_per_optimizer_step=4", "rollout.group_size=4",
        "rollout.max_response_tokens=16", "megatron.tensor_parallel=1", "checkpoint.every=0",
    ]  # fmt: skip
    log = folder / "log"
    folder.mkdir(parents=True)
    begun = time.time()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=os.environ | quiet, stdout=file, stderr=subprocess.STDOUT, cwd=folder
        )
        cpu_s = _watch(process, mark)
    wall_s = time.time() - begun
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    seconds = json.loads((folder / "run/summary.json").read_text(encoding="utf-8"))["seconds"]
    # Behind the first rollout lie the steps and the end.
    return Start(wall_s - (seconds["total"] - seconds["start"]), wall_s, cpu_s)


def _watch(process: subprocess.Popen[bytes], mark: str) -> dict[str, float]:
    """CPU seconds by kind of process until the run ends."""
    seen: dict[int, tuple[str, float]] = {}
    ours: dict[int, bool] = {}
    while process.poll() is None:
        for one in psutil.process_iter():
            try:
                if one.pid not in ours:
                    ours[one.pid] = _belongs(one, mark)
                if ours[one.pid]:
                    times = one.cpu_times()
                    seen[one.pid] = kind_of(one.cmdline()), times.user + times.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        time.sleep(_PERIOD_S)
    kinds = {kind for kind, _ in seen.values()}
    return {kind: sum(s for own, s in seen.values() if own == kind) for kind in kinds}


def _belongs(process: psutil.Process, mark: str) -> bool:
    if process.environ().get(_MARK) == mark:
        return True
    parent = process.parent()  # Ray's agents write their title over their environment
    return parent is not None and parent.environ().get(_MARK) == mark


def summarize(starts: Sequence[Start]) -> list[Row]:
    """The table's rows."""
    first = median_interval([start.to_first_rollout_s for start in starts])
    wall = median_interval([start.wall_s for start in starts])
    cpu = median_interval([sum(start.cpu_s.values()) for start in starts])
    kinds = sorted({kind for start in starts for kind in start.cpu_s})
    by_kind = {
        kind: median_interval([start.cpu_s.get(kind, 0.0) for start in starts])[0] for kind in kinds
    }
    shown = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in by_kind.items())
    return [
        Row("from the command to the first rollout", interval_text(first, unit=" s"),
            f"<= {GOAL_S:.0f} s", first[0] <= GOAL_S),
        Row("the whole run of one step", interval_text(wall, unit=" s")),
        Row("CPU time of all its processes", interval_text(cpu, unit=" s")),
        Row("of these", shown),
    ]  # fmt: skip


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="runs that are not counted")
    parser.add_argument("--out", type=new_file, help="JSON")
    options = parser.parse_args()
    started_on = machine()
    with tempfile.TemporaryDirectory() as name:
        task = Path(name) / "task"
        write_toy_task(task, seed=0, train_prompts=16, heldout_prompts=2, sft_rows=4)
        starts = [
            measure(task, Path(name) / str(number))
            for number in range(options.warm_up + options.runs)
        ][options.warm_up :]
    raw = {"starts": [vars(start) for start in starts]}
    report("start-up of a CPU run", summarize(starts), raw=raw, started_on=started_on,
           out=options.out)  # fmt: skip


if __name__ == "__main__":
    main()
