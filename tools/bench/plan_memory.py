"""Plans of several configurations side by side, or how long a plan of many ranks takes.

    python tools/bench/plan_memory.py configs/*gpu.yaml        # for the --gpu that each file names
    python tools/bench/plan_memory.py --gpu h100-80 configs/qwen2.5_7b_if_8gpu.yaml
    python tools/bench/plan_memory.py --bench --out plan.json  # 1,024 ranks, three models

`herl plan` prints one plan in full. The benchmark times `make_plan`, imports not included.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.table import Table

from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config, MegatronConfig, ModelConfig, RolloutConfig
from herl_megatron.plan.build import Plan, find_shape, make_plan
from herl_megatron.plan.command import choose_cluster
from herl_megatron.plan.machines import Assumptions, Cluster, choose_gpu
from herl_megatron.plan.show import gib
from tools.bench._bench import Row, machine, report
from tools.bench._out import new_file

_MODELS = Path(__file__).resolve().parents[2] / "configs/shapes"
_GOAL_S = 60.0
_LARGE: dict[str, dict[str, int]] = {
    "Qwen2.5-7B-Instruct": dict(tensor_parallel=2, pipeline_parallel=4, data_parallel=128),
    "Qwen2.5-72B-Instruct": dict(tensor_parallel=8, pipeline_parallel=16, data_parallel=8),
    "Qwen3-235B-A22B": dict(
        tensor_parallel=4, pipeline_parallel=2, data_parallel=128, expert_parallel=32
    ),
}


def named_gpu(path: Path) -> str | None:
    """The GPU in the plan command that the file's comment states."""
    found = re.search(r"^# .*--gpu (\S+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found.group(1) if found else None


def plan_file(path: Path, *, gpu: str | None, gpus_per_node: int) -> Plan:
    """The plan of one configuration."""
    config = load_config(path)
    cluster = choose_cluster(
        config, gpu or named_gpu(path), gpus_per_node=gpus_per_node, host_gib=0.0
    )
    return make_plan(config, find_shape(config, near=path), cluster=cluster, assumed=Assumptions())


def show_files(console: Console, paths: list[Path], *, gpu: str | None, per_node: int) -> bool:
    """One row per configuration; True if all fit."""
    table = Table(title="GiB per GPU and of host memory per node")
    for name in ("configuration", "worst phase", "needs", "has", "node", "fits"):
        table.add_column(name, overflow="fold")
    fits = True
    for path in paths:
        plan = plan_file(path, gpu=gpu, gpus_per_node=per_node)
        phase, needed = plan.worst.worst
        fits &= plan.fits
        limit = gib(plan.gpu_bytes) if plan.gpu_bytes else "-"
        table.add_row(
            path.stem,
            phase,
            gib(needed),
            limit,
            gib(sum(plan.host.values())),
            "yes" if plan.fits else "no",
        )
    console.print(table)
    return fits


def bench() -> list[tuple[str, float]]:
    """Seconds to plan 1,024 ranks of each model."""
    times = []
    for name, layout in _LARGE.items():
        megatron = MegatronConfig.model_validate(
            {**layout, "sequence_parallel": True, "recompute": "full"}
        )
        config = Config(
            model=ModelConfig(path=name),
            megatron=megatron,
            rollout=RolloutConfig(replicas=128, tensor_parallel=8),
        )
        cluster = Cluster(choose_gpu("h100-80"), nodes=128, gpus_per_node=8)
        start = time.perf_counter()
        make_plan(config, _MODELS / f"{name}.json", cluster=cluster, assumed=Assumptions())
        times.append((name, time.perf_counter() - start))
    return times


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--gpu", help="instead of the one that each file names")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--bench", action="store_true", help="time plans of 1,024 ranks")
    parser.add_argument("--out", type=new_file, help="JSON of the benchmark")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # Megatron-Core names what is not installed, several times
    if args.bench:
        started_on = machine()
        times = bench()
        rows = [
            Row(f"plan of 1,024 ranks, {name}", f"{seconds:.1f} s", "< 60 s", seconds < _GOAL_S)
            for name, seconds in times
        ]
        report("planner", rows, raw={"seconds": dict(times)}, started_on=started_on, out=args.out)
        return
    if not args.configs:
        parser.error("name configurations, or --bench")
    try:
        fits = show_files(Console(), args.configs, gpu=args.gpu, per_node=args.gpus_per_node)
    except ValueError as error:
        parser.error(str(error))
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    main()
