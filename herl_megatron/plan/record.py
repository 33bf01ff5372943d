"""`plan.json` in a run's folder: what `herl plan` counts for it, beside what it then measures.

Made by a process beside the run, since counting builds Megatron-Core's model, which the driver is
free of; that process sees no GPU, of which its context would take memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from herl_megatron.config.schema import ClusterConfig
from herl_megatron.device import list_gpus
from herl_megatron.files.run_files import PLAN
from herl_megatron.gpus import GPUS, find_gpu, read_gpus

_GIB = 1 << 30
_NICE = 19  # the run's own processes come first


@contextmanager
def plan_beside(run: Path, cluster: ClusterConfig, *, device: str, per_node: int) -> Iterator[None]:
    """Write `plan.json` into the folder `run`, whose config.yaml is there, while the block lasts.

    device: torch's name of the ranks' GPUs; on the CPU ("") nothing is done: there the counting
        would take what the run needs. per_node: GPUs of a node that the run uses.
    """
    gpu = _planned_for(cluster, device)
    if gpu is None:
        yield
        return
    command = [sys.executable, "-m", "herl_megatron.plan.record", str(run), gpu, str(per_node)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()  # where it has not ended, a run this short has nothing to compare
        process.wait()


def _planned_for(cluster: ClusterConfig, device: str) -> str | None:
    """What `herl plan --gpu` takes for this GPU; None where nothing is known of it."""
    if not device:
        return None
    known = find_gpu(device, read_gpus(Path(cluster.gpu_table)) if cluster.gpu_table else GPUS)
    if known is not None:
        return known.name
    here = [gpu for gpu in list_gpus() if gpu.name == device]
    return f"{here[0].total_bytes / _GIB:.2f}_GiB" if here else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan the run in a folder and write the file, which appears whole or not at all."""
    parser = argparse.ArgumentParser(description="write plan.json into a run's folder")
    parser.add_argument("run", type=Path)
    parser.add_argument("gpu")
    parser.add_argument("gpus_per_node", type=int)
    given = parser.parse_args(arguments)
    from herl_megatron.plan.command import WantedMachines, run_plan  # imports Megatron-Core

    os.nice(_NICE)
    temporary = given.run / f"{PLAN}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        run_plan(
            [given.run / "config.yaml"],
            (),
            machines=WantedMachines(given.gpu, gpus_per_node=given.gpus_per_node),
            as_json=True,
            console=Console(file=file),
        )
    os.replace(temporary, given.run / PLAN)


if __name__ == "__main__":
    main()
