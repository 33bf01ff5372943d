"""`herl plan`: what a configuration needs, before anything is started."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from herl_megatron.config.load import load_config
from herl_megatron.config.reference_compat import effective_config
from herl_megatron.config.schema import Config
from herl_megatron.data.epochs import in_steps_where_known
from herl_megatron.device import LocalGpu, list_gpus
from herl_megatron.gpus import GPUS, Gpu, find_gpu, read_gpus
from herl_megatron.plan.build import find_shape, make_plan, to_json
from herl_megatron.plan.machines import GIB, Assumptions, Cluster, choose_gpu
from herl_megatron.plan.remedies import cheapest_changes
from herl_megatron.plan.show import show_changes, show_plan


@dataclass(frozen=True)
class WantedMachines:
    """What to plan for.

    gpu: by name; none plans for this machine's GPU, or for the CPU. `cluster.device: cpu` always
        plans for the CPU.
    gpus: a file with further GPUs (`gpus.read_gpus`), instead of `cluster.gpu_table`.
    host_gib: host memory of a node, 0 leaves it unchecked.
    """

    gpu: str | None = None
    gpus: Path | None = None
    gpus_per_node: int = 8
    host_gib: float = 0.0


def run_plan(
    paths: Sequence[Path],
    overrides: Sequence[str],
    *,
    model_config: Path | None = None,
    machines: WantedMachines | None = None,
    rates: Sequence[str] = (),
    as_json: bool = False,
    console: Console | None = None,
) -> bool:
    """Plan, print, and where it does not fit print the cheapest changes that do; True if it fits.

    Raises:
        ValueError: an unknown key, model, GPU or rate.
    """
    asked = effective_config(load_config(paths, overrides), purpose="train")
    config, length = in_steps_where_known(asked, "train")
    shape = find_shape(config, near=paths[0], given=model_config)
    assumed = Assumptions().with_values(rates)
    machines = machines or WantedMachines()
    table = machines.gpus or config.cluster.gpu_table
    cluster = choose_cluster(
        config,
        machines.gpu,
        gpus_per_node=machines.gpus_per_node,
        host_gib=machines.host_gib,
        gpus=read_gpus(Path(table)) if table else GPUS,
    )
    plan = make_plan(config, shape, cluster=cluster, assumed=assumed)
    plan = replace(plan, warnings=(*plan.warnings, *([length] if length else ())))
    console = console or Console()
    if as_json:
        console.print(to_json(plan), highlight=False, soft_wrap=True, markup=False)
        return plan.fits
    show_plan(console, plan, config, cluster)
    if not plan.fits and cluster is not None:
        changes = cheapest_changes(config, shape, plan=plan, cluster=cluster, assumed=assumed)
        show_changes(console, changes, plan, cluster)
    return plan.fits


def choose_cluster(
    config: Config,
    name: str | None,
    *,
    gpus_per_node: int,
    host_gib: float,
    gpus: Mapping[str, Gpu] = GPUS,
) -> Cluster | None:
    """The machines to plan for: as many nodes as the ranks and engines fill."""
    if config.cluster.device == "cpu":
        return None
    if name is None:
        here = list_gpus()
        if not here and config.cluster.device == "auto":
            return None
        gpu = _here(here[0], gpus) if here else choose_gpu("h100-80")
        gpus_per_node = len(here) or gpus_per_node
    else:
        gpu = choose_gpu(name, gpus)
    used = max(config.megatron.world_size, config.rollout.replicas * config.rollout.tensor_parallel)
    nodes = math.ceil(used / gpus_per_node)
    per_node = min(gpus_per_node, used)
    return Cluster(gpu, nodes, per_node, host_bytes=int(host_gib * GIB))


def _here(found: LocalGpu, gpus: Mapping[str, Gpu]) -> Gpu:
    """A GPU of this machine: its own memory, the rates of the table or, said, an H100's."""
    known = find_gpu(found.name, gpus)
    if known is not None:
        return replace(known, name=found.name, memory_bytes=found.total_bytes)
    return replace(
        gpus["h100-80"],
        name=f"{found.name} (an H100's rates: it is in no table, see --gpus)",
        memory_bytes=found.total_bytes,
        capability=found.capability,
    )
