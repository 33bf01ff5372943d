"""Every benchmark at its smallest size, and how to run one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.limits import HANG_S

ROOT = Path(__file__).parents[1]
PURE: Mapping[str, str] = {
    "bench_judge_overlap": "--seeds 1 --prompts 2 --group-size 2 --slots 4 --concurrency 2"
    " --share 0.5",
    "bench_log_probs": "--vocab 512 --hidden 16 --time-tokens 64 --memory-tokens 64 --repeats 1",
    "bench_packing": "--seeds 1 --rows 8",
    "bench_schedule": "--seeds 1 --prompts 2 --slots 8",
}
"""Those that start no process."""
WHOLE: Mapping[str, str] = {
    "bench_checkpoint": "--layers 1 --hidden 64 --pairs 1 --folder {folder}",
    "bench_conversion": "--layers 4 --hidden 256 --vocab 1000 --pairs 1 --tp 1 --pp 1"
    " --folder {folder}",
    "bench_gpu_step": "--shape tiny --device cpu --tokens 32 --length 16 --pairs 1 --warm-up 1"
    " --no-compile",
    "bench_orchestration": "--prompts 2 --group-size 4 --response-tokens 32 --engines 1 --ranks 2"
    " --scorers 1 --repeats 1",
    "bench_scoring": "--pairs 1 --processes 2 --groups 2 --item-ms 0.2",
    "bench_startup": "--runs 1 --warm-up 0",
    "bench_step": "--cycles 1 --prompts 2 --group 8 --slots 16 --median 4 --longest 8",
    "bench_weight_sync": "--megabytes 1 --bucket-megabytes 1 --tensor-parallel 1 --repeats 1",
}
"""Those that start Ray, engines, ranks or tools."""
WITH_RUNS = ("bench_arms", "bench_trl")
"""Those that start `herl train`."""


def run_bench(name: str, arguments: str, folder: Path, *more: str) -> dict[str, Any]:
    """What a benchmark writes with `--out`. At size 1 a goal may be missed, which some tell by
    their exit code; anything else that goes wrong is an error."""
    out = folder / f"{name}.json"
    script = str(ROOT / f"tools/bench/{name}.py")
    command = [script, *arguments.format(folder=folder).split(), *more]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/_supervise.py"), sys.executable, *command,
         "--out", str(out)],
        cwd=folder, capture_output=True, text=True, timeout=HANG_S,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode in (0, 1) and out.is_file(), f"{done.stdout}\n{done.stderr}"[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    missed = any(row["met"] is False for row in found["results"] if isinstance(row, dict))
    assert done.returncode == 0 or missed, f"{done.stdout}\n{done.stderr}"[-3000:]
    return found
