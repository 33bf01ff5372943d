"""What Ray has, what a run needs of it, and holding that for the run.

GPUs are held by one actor per node which asks Ray for them and does nothing. Ranks and engines
share them two and two and ask for none, so nobody else gets them from Ray meanwhile, and two runs
on one cluster do not meet. All nodes are taken at once or not at all (a placement group).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.placement import (
    Demand,
    Node,
    Placement,
    in_order,
    place,
)
from herl_megatron.config.schema import ClusterConfig
from herl_megatron.device import choose_kind, has_cuda
from herl_megatron.types import DeviceKind

_TIMEOUT_S = 60.0


class Reservation:
    """A run's placement; its GPUs are held until `release`, or the driver's end."""

    def __init__(self, placement: Placement, group: PlacementGroup | None, held: list[Any]):
        self.placement = placement
        self._group = group
        self._held = held

    def release(self) -> None:
        """Give the GPUs back; may be called twice."""
        group, self._group = self._group, None
        self._held.clear()  # Ray ends an actor that nobody refers to
        if group is not None:
            remove_placement_group(group)


def run_device(config: ClusterConfig) -> DeviceKind:
    """What trainer and engines compute on, after Ray was joined or started.

    The driver needs no GPU: it may be on the cluster's head, or on a login node.

    Raises:
        ValueError: `cuda` and there is none; `auto` on a machine without GPUs in a cluster with.
    """
    there = ray.cluster_resources().get("GPU", 0.0) if config.address else 0.0
    if has_cuda() or not there:
        return choose_kind(config.device)
    if config.device == "auto":
        raise ValueError(
            "cluster.device is 'auto' and torch sees no CUDA device here, but the Ray cluster at"
            f" {config.address} has {there:g} GPUs: set it to 'cuda' to use them, or to 'cpu'"
        )
    return config.device


def reserve(wanted: Demand, *, device: DeviceKind, start_timeout_s: float) -> Reservation:
    """Place a run on the Ray cluster that was joined or started, and hold its GPUs.

    start_timeout_s: `cluster.start_timeout_s`, for a process on each node.

    Raises:
        ValueError: see `place`; also GPUs that another run has, with what is free where.
        WorkerError: a node starts no process.
    """
    nodes = ray_nodes()
    planned = place(wanted, nodes, device=device)
    if device == "cpu":
        return Reservation(planned, None, [])
    bundles = [{"GPU": float(count)} for count in _gpus_to_hold(planned, nodes)]
    group = _hold(bundles)
    try:
        holders = [
            _Holder.options(  # type: ignore[attr-defined]
                num_gpus=bundle["GPU"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=index
                ),
            ).remote()
            for index, bundle in enumerate(bundles)
        ]
        facts = _ask(holders, timeout_s=start_timeout_s)
        held = in_order(facts, driver=ray.get_runtime_context().get_node_id())
        placement = place(wanted, held, device=device)
    except BaseException:
        remove_placement_group(group)
        raise
    return Reservation(placement, group, holders)


@ray.remote(num_cpus=0, max_restarts=0)
class _Holder:
    """Has GPUs and does nothing with them."""

    def node(self) -> Node:
        """Its node with the GPUs that Ray gave it."""
        context = ray.get_runtime_context()
        gpus = tuple(str(name) for name in context.get_accelerator_ids()["GPU"])
        return Node(id=context.get_node_id(), ip=ray.util.get_node_ip_address(), gpus=gpus)


def _gpus_to_hold(planned: Placement, nodes: Sequence[Node]) -> list[int]:
    """GPUs by node: of a single node those that are used, of several all."""
    slots = (*planned.trainer, *planned.engines)
    used = {slot.node_id for slot in slots}
    if len(used) == 1:
        return [len({gpu for slot in slots for gpu in slot.gpus})]
    return [len(node.gpus) for node in nodes if node.id in used]


def _ask(holders: Sequence[Any], *, timeout_s: float) -> list[Node]:
    try:
        nodes: list[Node] = ray.get([h.node.remote() for h in holders], timeout=timeout_s)
    except GetTimeoutError as error:
        raise WorkerError(
            f"of {len(holders)} nodes not all started a Python process within {timeout_s:g} s; look"
            " at their load and file systems, or raise cluster.start_timeout_s"
        ) from error
    return nodes


def _hold(bundles: Sequence[dict[str, float]]) -> PlacementGroup:
    group = placement_group(list(bundles), strategy="STRICT_SPREAD")
    if group.wait(_TIMEOUT_S):
        return group
    remove_placement_group(group)
    wanted = " + ".join(f"{bundle['GPU']:g}" for bundle in bundles)
    free = ray.available_resources().get("GPU", 0.0)
    raise ValueError(
        f"the run needs {wanted} GPUs, a number per node; after {_TIMEOUT_S:g} s {free:g} of the"
        f" Ray cluster's {ray.cluster_resources().get('GPU', 0.0):g} GPUs are free, another run"
        " has the rest (`ray status`): wait for its end, or start a cluster of your own"
    )


def ray_nodes() -> list[Node]:
    """The live nodes of the Ray cluster in the order in which they are filled."""
    nodes = [
        Node(
            id=str(node["NodeID"]),
            ip=str(node["NodeManagerAddress"]),
            gpus=tuple(str(index) for index in range(int(node["Resources"].get("GPU", 0)))),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return in_order(nodes, driver=ray.get_runtime_context().get_node_id())
