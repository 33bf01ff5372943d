"""Wait until a Ray cluster has the nodes and GPUs that a job was given, or say what is missing.

    python -m herl_megatron.cluster.ready HOST:PORT --nodes 8 --gpus-per-node 8 --timeout 300

For `slurm/ray_cluster.sh`, before the driver starts. Exit codes: 0 all there, 1 not within the
time.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import ray

from herl_megatron.cluster.placement import Node
from herl_megatron.cluster.reserve import ray_nodes

_POLL_S = 1.0


def missing(found: Sequence[Node], *, nodes: int, gpus_per_node: int) -> str:
    """What a cluster lacks; "" where it has all."""
    short = [f"{n.ip} has {len(n.gpus)}" for n in found if len(n.gpus) < gpus_per_node]
    if len(found) < nodes:
        there = ", ".join(node.ip for node in found) or "none"
        return f"{len(found)} of {nodes} nodes are there: {there}"
    if short:
        return f"{gpus_per_node} GPUs are expected on each node, but {', '.join(short)}"
    return ""


def wait_until_ready(address: str, *, nodes: int, gpus_per_node: int, timeout_s: float) -> str:
    """`missing` of the cluster at `address`, as soon as it is nothing, or after `timeout_s`."""
    end = time.monotonic() + timeout_s
    lacks = f"nothing answers at {address}"
    while lacks and time.monotonic() < end:
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            lacks = missing(ray_nodes(), nodes=nodes, gpus_per_node=gpus_per_node)
        except ConnectionError as error:
            lacks = f"nothing answers at {address} ({str(error).splitlines()[0]})"
        if lacks:
            time.sleep(_POLL_S)
    ray.shutdown()
    return lacks


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="wait for a Ray cluster")
    parser.add_argument("address")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300.0)
    given = parser.parse_args()
    lacks = wait_until_ready(
        given.address,
        nodes=given.nodes,
        gpus_per_node=given.gpus_per_node,
        timeout_s=given.timeout,
    )
    if lacks:
        sys.stderr.write(f"error: Ray is not ready after {given.timeout:g} s: {lacks}\n")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
