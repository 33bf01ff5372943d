"""`herl plan`: what a configuration needs, before anything is started."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config
from herl_megatron.device import list_gpus
from herl_megatron.hindsight.compat import effective
from herl_megatron.plan.build import Plan, find_shape, make_plan, to_json
from herl_megatron.plan.cluster import GIB, Assumptions, Cluster, Gpu, choose_gpu
from herl_megatron.plan.layouts import Suggestion, suggest
from herl_megatron.plan.show import show_plan


def run_plan(
    path: Path,
    overrides: Sequence[str],
    *,
    model_config: Path | None = None,
    gpu: str | None = None,
    gpus_per_node: int = 8,
    host_gib: float = 0.0,
    rates: Sequence[str] = (),
    as_json: bool = False,
    console: Console | None = None,
) -> bool:
    """Plan, print, and where it does not fit print a layout that does; True if it fits.

    gpu: what to plan for; none plans for this machine's GPU, or for the CPU. `cluster.device: cpu`
        always plans for the CPU.
    host_gib: host memory of a node, 0 leaves it unchecked.

    Raises:
        ValueError: an unknown key, model, GPU or rate.
    """
    config = load_config(path, overrides)
    hindsight = effective(config.hindsight, config.rollout)
    config = config.model_copy(update={"hindsight": hindsight})
    shape = find_shape(config, near=path, given=model_config)
    assumed = Assumptions().with_values(rates)
    cluster = choose_cluster(config, gpu, gpus_per_node=gpus_per_node, host_gib=host_gib)
    plan = make_plan(config, shape, cluster=cluster, assumed=assumed)
    console = console or Console()
    if as_json:
        console.print(to_json(plan), highlight=False, soft_wrap=True, markup=False)
        return plan.fits
    show_plan(console, plan, config, cluster)
    if not plan.fits and not plan.only_host_misfits and cluster is not None:
        _show_suggestion(console, suggest(config, shape, cluster=cluster, assumed=assumed))
    return plan.fits


def choose_cluster(
    config: Config, name: str | None, *, gpus_per_node: int, host_gib: float
) -> Cluster | None:
    """The machines to plan for: as many nodes as the ranks and engines fill."""
    if config.cluster.device == "cpu":
        return None
    if name is None:
        here = list_gpus()
        if not here and config.cluster.device == "auto":
            return None
        gpu = _like(here[0].name, here[0].total_bytes) if here else choose_gpu("h100-80")
        gpus_per_node = len(here) or gpus_per_node
    else:
        gpu = choose_gpu(name)
    used = max(config.megatron.world_size, config.rollout.replicas * config.rollout.tensor_parallel)
    nodes = math.ceil(used / gpus_per_node)
    per_node = min(gpus_per_node, used)
    return Cluster(gpu, nodes, per_node, host_bytes=int(host_gib * GIB))


def _like(name: str, memory_bytes: int) -> Gpu:
    """A GPU of this machine: its own memory, the rates of its family or an H100's."""
    for family in ("h200-141", "a100-80", "h100-80"):
        if family.partition("-")[0] in name.lower():
            return replace(choose_gpu(family), name=name, memory_bytes=memory_bytes)
    return replace(choose_gpu("h100-80"), name=name, memory_bytes=memory_bytes)


def _show_suggestion(console: Console, found: Suggestion | str) -> None:
    if isinstance(found, str):
        console.print(f"[bold]suggestion:[/] {escape(found)}", highlight=False)
        return
    worst: Plan = found.plan
    needed = worst.worst.worst[1] / GIB
    console.print(
        f"[bold]suggestion:[/] {escape(' '.join(found.overrides))}\n  {escape(found.why)};"
        f" needs {needed:.2f} GiB of {worst.gpu_bytes / GIB:.2f}",
        highlight=False,
    )
