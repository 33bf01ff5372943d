"""Which node and GPUs each trainer rank and each engine gets; pure but for Ray's option names.

Ranks fill the nodes in order, as Megatron's rank order (`tp-cp-ep-dp-pp`) expects: TP neighbours
share a node, pipeline stages lie far apart. An engine takes consecutive GPUs of one node, those of
trainer ranks there: they take turns. On the CPU ranks and engines are spread evenly instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from herl_megatron.config.schema import MegatronConfig, RolloutConfig
from herl_megatron.types import DeviceKind

_NETWORK = ("NCCL_", "GLOO_", "TORCH_NCCL_", "FI_", "UCX_")


@dataclass(frozen=True)
class Node:
    """A Ray node. gpus: those that this run may use, as `CUDA_VISIBLE_DEVICES` names them."""

    id: str
    ip: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slot:
    """Where one process runs: a node and some of its GPUs (none on the CPU)."""

    node_id: str
    node_ip: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """A slot per trainer rank (one GPU each) and per engine (`rollout.tensor_parallel` GPUs)."""

    trainer: tuple[Slot, ...]
    engines: tuple[Slot, ...]

    @property
    def gpus_per_node(self) -> int:
        """How many GPUs it takes of the node of which it takes most; 0 on the CPU."""
        used: dict[str, set[str]] = {}
        for slot in (*self.trainer, *self.engines):
            used.setdefault(slot.node_id, set()).update(slot.gpus)
        return max(map(len, used.values()), default=0)


@dataclass(frozen=True)
class Demand:
    """What a run asks of its nodes: trainer ranks in groups of `tensor_parallel`, and engines of
    `engine_gpus` GPUs each (`rollout.tensor_parallel`)."""

    ranks: int
    tensor_parallel: int
    engines: int
    engine_gpus: int


def demand(megatron: MegatronConfig | None, rollout: RolloutConfig | None) -> Demand:
    """No `megatron`, no trainer ranks (`herl eval`); no `rollout`, no engines (`herl sft`)."""
    return Demand(
        ranks=megatron.world_size if megatron else 0,
        tensor_parallel=megatron.tensor_parallel if megatron else 1,
        engines=rollout.replicas if rollout else 0,
        engine_gpus=rollout.tensor_parallel if rollout else 1,
    )


def in_order(nodes: Sequence[Node], *, driver: str) -> list[Node]:
    """Nodes in the order in which they are filled: the one with id `driver`, then by address."""
    return sorted(nodes, key=lambda node: (node.id != driver, _address_key(node.ip), node.id))


def place(wanted: Demand, nodes: Sequence[Node], *, device: DeviceKind) -> Placement:
    """Slots on `nodes`, which are filled in the order given (`in_order`).

    With trainer ranks, engines are only where those are, which bring them the weights.

    Raises:
        ValueError: the layout does not fit the nodes; says what is missing and what to change.
    """
    return _spread(wanted, nodes) if device == "cpu" else _fill(wanted, nodes)


def bucket_writers(
    senders: Sequence[int], ranks: Sequence[str], engines: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Which ranks write each pipeline stage's weight buckets: the sender first, and one more on
    every other machine that has engines; its ranks take turns by stage.

    senders: per stage the rank that gathers; ranks, engines: the machine of each rank and engine.
    """
    others = {
        machine: [rank for rank, home in enumerate(ranks) if home == machine]
        for machine in dict.fromkeys(engines)
    }
    return tuple(
        (
            sender,
            *(
                local[stage % len(local)]
                for machine, local in others.items()
                if machine != ranks[sender]
            ),
        )
        for stage, sender in enumerate(senders)
    )


def ranks_beside_engines(placement: Placement) -> tuple[int, ...] | None:
    """The trainer ranks on the engines' GPUs; None if some GPU of an engine has no rank."""
    rank_of = {
        (slot.node_id, gpu): rank
        for rank, slot in enumerate(placement.trainer)
        for gpu in slot.gpus
    }
    gpus = [(slot.node_id, gpu) for slot in placement.engines for gpu in slot.gpus]
    if not gpus or not rank_of.keys() >= set(gpus):
        return None
    return tuple(sorted(rank_of[gpu] for gpu in gpus))


def device_bucket_writers(
    senders: Sequence[int], beside: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Which ranks need each pipeline stage's buckets in the memory of their GPU: the rank that
    gathers first, then those of `ranks_beside_engines`."""
    return tuple((sender, *(rank for rank in beside if rank != sender)) for sender in senders)


def actor_options(slot: Slot, *, device: DeviceKind, env: dict[str, str]) -> dict[str, Any]:
    """Ray options of a trainer rank or an engine at `slot`.

    Workers ask for 0 logical CPUs, so the number of cores never keeps a run from starting, and for
    0 GPUs, since two of them share each: `cluster.reserve` holds the GPUs for the run, and the
    process is told here which of them are its own.
    """
    variables = dict(env)
    if device == "cuda":
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        # A Ray told to hide the GPUs from whoever asks for none would empty the line above.
        variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    return {
        "num_cpus": 0,
        "num_gpus": 0,
        "max_restarts": 0,
        "runtime_env": {"env_vars": variables},
        "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node_id, soft=False),
    }


def trainer_environment(threads: int, *, device: DeviceKind) -> dict[str, str]:
    """Environment of a trainer rank's process.

    One OpenMP thread by default: idle threads spin and take the cores from the other workers.
    Megatron's fused activation is compiled at its first use, which pays on GPUs only.
    """
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return environment | ({"TORCH_COMPILE_DISABLE": "1"} if device == "cpu" else {})


def network_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of the driver's environment tells collectives which network to use: Ray started by
    somebody else on another node does not have it."""
    return {name: value for name, value in environ.items() if name.startswith(_NETWORK)}


def _spread(wanted: Demand, nodes: Sequence[Node]) -> Placement:
    """On the CPU: whole TP groups, then engines, in even blocks over the nodes."""
    if not nodes:
        raise ValueError("the Ray cluster has no node; start one with `ray start --head`")
    tp = wanted.tensor_parallel
    homes = [node for node, groups in _blocks(nodes, wanted.ranks // tp) for _ in range(groups)]
    trainer = tuple(_slot(node) for node in homes for _ in range(tp))
    # In the nodes' order; without a trainer, engines may be anywhere.
    sampling = list(dict.fromkeys(homes)) or list(nodes)
    return Placement(
        trainer=trainer,
        engines=tuple(
            _slot(node) for node, count in _blocks(sampling, wanted.engines) for _ in range(count)
        ),
    )


def _fill(wanted: Demand, nodes: Sequence[Node]) -> Placement:
    """On GPUs: one rank per GPU, node after node; engines in even blocks over the same nodes."""
    usable = [node for node in nodes if node.gpus]
    ranks, engines, engine_gpus = wanted.ranks, wanted.engines, wanted.engine_gpus
    needed = max(ranks, engines * engine_gpus)
    total = sum(len(node.gpus) for node in usable)
    if total < max(needed, 1):
        raise ValueError(
            f"the run needs {needed} GPUs, but the Ray cluster has {total} ({_counts(nodes)}): make"
            " megatron's TP * PP * CP * DP and rollout.replicas * rollout.tensor_parallel smaller,"
            " or start Ray on more nodes"
        )
    fitting = [node for node in usable if len(node.gpus) >= needed][:1]
    _check_nodes(wanted, fitting or usable)
    per_node = len((fitting or usable)[0].gpus)
    room = per_node // engine_gpus if engines else 1  # engines to a node
    of_trainer, of_engines = -(-ranks // per_node), -(-engines // room)
    used = (fitting or usable)[: max(of_trainer, of_engines)]
    if len(used) < of_engines or (ranks and of_engines > of_trainer):
        raise ValueError(
            f"{engines} engines (rollout.replicas) of {engine_gpus} GPUs (rollout.tensor_parallel)"
            f" need {of_engines} nodes of {per_node} GPUs, but there are {len(usable)} and the"
            f" trainer's {ranks} ranks are on {of_trainer}: lower one of the two"
        )
    placed = [
        _slot(node, index * engine_gpus, engine_gpus)
        for node, count in _blocks(used, engines)
        for index in range(count)
    ]
    trainer = [_slot(used[rank // per_node], rank % per_node) for rank in range(ranks)]
    return Placement(trainer=tuple(trainer), engines=tuple(placed))


def _check_nodes(wanted: Demand, nodes: Sequence[Node]) -> None:
    """Refuse nodes that the layout cannot be cut into."""
    if len({len(node.gpus) for node in nodes}) > 1:
        raise ValueError(
            "a run on several nodes needs equally many GPUs on each, but they have"
            f" {_counts(nodes)}: leave the odd ones out of the Ray cluster"
        )
    per_node = len(nodes[0].gpus)
    tp, engine_gpus = wanted.tensor_parallel, wanted.engine_gpus
    if wanted.engines and engine_gpus > per_node:
        raise ValueError(
            f"rollout.tensor_parallel is {engine_gpus}, but a node has {per_node} GPUs and an"
            " engine never spans nodes; lower it, and raise rollout.replicas for more engines"
        )
    if wanted.ranks > per_node and per_node % tp:
        raise ValueError(
            f"megatron.tensor_parallel {tp} does not divide the {per_node} GPUs of a node, so that"
            " a TP group would span two nodes; choose a divisor, and use pipeline_parallel where a"
            " model needs more GPUs"
        )


def _blocks(nodes: Sequence[Node], count: int) -> list[tuple[Node, int]]:
    """Each node with its share of `count`; the first ones get what is left over."""
    share, rest = divmod(count, len(nodes))
    return [(node, share + (index < rest)) for index, node in enumerate(nodes)]


def _slot(node: Node, first: int = 0, count: int = 1) -> Slot:
    return Slot(node.id, node.ip, node.gpus[first : first + count])


def _counts(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{node.ip}: {len(node.gpus)}" for node in nodes) or "none with GPUs"


def _address_key(ip: str) -> tuple[int, int, str]:
    """Order of addresses by number; names, which Ray may give too, after them."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return (9, 0, ip)
    return (address.version, int(address), "")
