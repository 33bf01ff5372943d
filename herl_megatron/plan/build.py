"""A whole plan from a configuration and a model's shape."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from herl_megatron import fp8
from herl_megatron.cluster.placement import Demand, Node, demand, place, ranks_beside_engines
from herl_megatron.config.hub import is_hub_name, local_folder
from herl_megatron.config.machine import Machine
from herl_megatron.config.rules.data import read_shape
from herl_megatron.config.schema import Config
from herl_megatron.config.validate import rule_problems, shape_problems
from herl_megatron.device import Device, Transport, choose_transport, memory_bytes
from herl_megatron.files.os_errors import absent
from herl_megatron.megatron.meta import RankBytes, rank_bytes, stage_ranks
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.flops import model_parameters
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.plan.engine_memory import EnginePlan, mean_tokens, plan_engine
from herl_megatron.plan.environment import environment_warnings
from herl_megatron.plan.host import SHARED, cpu_host_bytes, host_bytes
from herl_megatron.plan.judge import JudgePlan, plan_judge
from herl_megatron.plan.machines import GIB, Assumptions, Cluster
from herl_megatron.plan.rank_memory import (
    RankPlan,
    largest_bucket_bytes,
    micro_batches_per_step,
    plan_ranks,
)
from herl_megatron.plan.timing import step_seconds

_NEWEST_CUDA = (99, 0)  # which one the machines have is not known here
_HOST_REMEDIES = {
    "processes": "fewer scoring.workers",
    "engines asleep": "rollout.sleep=2 keeps no copy of an engine's weights",
    "reference": "megatron.reference=resident, or more ranks per model copy",
    "checkpoint": "more nodes, or a pipeline stage per node",
    "weight buckets": "a smaller weight_sync.bucket_bytes",
    "Ray's objects": "a smaller object store (ray start --object-store-memory)",
}


@dataclass(frozen=True)
class Plan:
    """What a run needs, and whether it fits.

    ranks: one per pipeline stage; problems: why it cannot run anywhere; warnings: what to look at
    before the launch; gpu_bytes: what one GPU (CPU: nothing) may be filled to; host: memory of the
    fullest node by use; judge: what it is asked, None without one.
    """

    parameters: int
    ranks: tuple[RankPlan, ...]
    engine: EnginePlan
    micro_batches: int
    gpu_bytes: int
    sleep_residue_bytes: int
    host: Mapping[str, int]
    host_limit_bytes: int
    seconds: Mapping[str, float]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    assumed: Assumptions
    judge: JudgePlan | None

    @property
    def worst(self) -> RankPlan:
        """The rank that needs most."""
        return max(self.ranks, key=lambda rank: rank.worst[1])

    @property
    def host_fits(self) -> bool:
        """Whether the fullest node holds what it must, or its memory is not known."""
        return not self.host_limit_bytes or sum(self.host.values()) <= self.host_limit_bytes

    @property
    def fits(self) -> bool:
        """Whether every GPU and host holds what it must and no rule is broken."""
        return self._all_but_gpus and self._on_gpus(self.worst.worst[1])

    @property
    def only_host_misfits(self) -> bool:
        """Whether nothing but a node's host memory is too small, which no layout mends."""
        rest = self.engine.sequences > 0 and not self.problems
        return rest and not self.host_fits and self._on_gpus(self.worst.worst[1])

    @property
    def _all_but_gpus(self) -> bool:
        return self.engine.sequences > 0 and self.host_fits and not self.problems

    def _on_gpus(self, size: int) -> bool:
        return not self.gpu_bytes or size <= self.gpu_bytes

    def as_dict(self) -> dict[str, Any]:
        """Every number, for JSON."""
        worst, (phase, needed) = self.worst, self.worst.worst
        return {
            "fits": self.fits,
            "worst": {"ranks": worst.ranks, "phase": phase, "bytes": needed},
            **asdict(self),
        }


def find_shape(config: Config, *, near: Path, given: Path | None = None) -> Path:
    """The `config.json` of the model: `given`, that of the folder `model.path`, the file
    `shapes/NAME.json` beside the configuration `near` or in a folder above it, or that of the model
    of this name on the Hugging Face Hub (no weights are fetched).

    Raises:
        ValueError: none of them exists.
    """
    if given is not None:
        path = given / "config.json" if os.path.isdir(given) else given
        if problem := absent(path, "file"):
            raise ValueError(f"--model-config: {problem}: {path}")
        return path
    folder = Path(config.model.path)
    name = f"shapes/{folder.name}.json"
    candidates = [folder / "config.json", *(up / name for up in near.absolute().parents)]
    for path in candidates:
        if os.path.isfile(path):
            return path
    if is_hub_name(config.model.path):
        try:
            return local_folder(config.model.path, key="model.path", weights=False) / "config.json"
        except ValueError as error:
            raise ValueError(f"{error}, or give its config.json with --model-config") from error
    raise ValueError(
        f"model.path {config.model.path!r} is no Hugging Face folder here and there is no {name}"
        f" beside {near}; give the model's config.json with --model-config"
    )


def make_plan(
    config: Config,
    shape: Path,
    *,
    cluster: Cluster | None,
    assumed: Assumptions,
    ranks: tuple[RankBytes, ...] | None = None,
) -> Plan:
    """Plan a run on `cluster`, or on this machine's CPU without one.

    Args:
        ranks: the stages' first ranks where they were counted already.

    Raises:
        ValueError: the model is not supported, or the layout cannot cut it.
    """
    architecture = read_architecture(str(shape))
    problems = find_problems(config, shape, cluster)
    gpu = cluster.gpu if cluster else None
    engine = plan_engine(architecture, config, gpu=gpu, assumed=assumed)
    rows = mean_tokens(config, assumed)
    micro_batches = micro_batches_per_step(config, rows)
    if ranks is None:
        ranks = rank_bytes(architecture, config.megatron, stage_ranks(config.megatron))
    reserve = int(assumed.reserve_gib * GIB)
    residue = int(assumed.sleep_residue_gib * GIB)
    transport: Transport = "shared_memory"
    if cluster is not None and not problems:
        transport = _choose_transport(config, cluster)
    stages = plan_ranks(
        config,
        architecture,
        ranks,
        engine,
        on_gpu=gpu is not None,
        micro_batches=micro_batches,
        sleep_residue_bytes=residue,
        transport=transport,
    )
    judge = plan_judge(config, assumed)
    bucket = largest_bucket_bytes(config, architecture)
    host = (
        cpu_host_bytes(config, stages, engine, assumed, bucket_bytes=bucket)
        if cluster is None
        else host_bytes(
            config, ranks, engine, cluster, assumed, bucket_bytes=bucket, transport=transport
        )
    )
    return Plan(
        parameters=model_parameters(architecture),
        ranks=stages,
        engine=engine,
        micro_batches=micro_batches,
        gpu_bytes=gpu.memory_bytes - reserve if gpu else 0,
        sleep_residue_bytes=residue,
        host=host,
        host_limit_bytes=cluster.host_bytes if cluster else memory_bytes(Device("cpu"))[1],
        seconds=_seconds(
            config, architecture, engine, cluster, micro_batches, assumed, transport, judge
        ),
        problems=problems,
        warnings=tuple(_warnings(config, cluster, host)),
        assumed=assumed,
        judge=judge,
    )


def find_problems(config: Config, shape: Path, cluster: Cluster | None) -> tuple[str, ...]:
    """Rules that are broken and conflicts with the machines planned for."""
    device: Literal["cpu", "cuda"] = "cuda" if cluster else "cpu"
    machine = Machine(gpus=cluster.gpus if cluster else 0, transformer_engine=True)
    here = config.model_copy(
        update={"cluster": config.cluster.model_copy(update={"device": device, "address": ""})}
    )
    problems = [
        *rule_problems(here, purpose="train", machine=machine),
        *shape_problems(config, read_shape(shape), purpose="train", device=device),
    ]
    if cluster is not None:
        problems += _conflicts(config, cluster)
    return tuple(problems)


def _conflicts(config: Config, cluster: Cluster) -> list[str]:
    """What the placement of ranks and engines on such nodes refuses, and FP8."""
    megatron = config.megatron
    found = []
    engine_gpus = config.rollout.replicas * config.rollout.tensor_parallel
    if max(megatron.world_size, engine_gpus) <= cluster.gpus:  # else a rule has said so
        try:
            _choose_transport(config, cluster)
        except ValueError as error:
            found.append(str(error))
    recipes = fp8.available(capability=cluster.gpu.capability, cuda=_NEWEST_CUDA)
    if megatron.fp8 and megatron.fp8 not in recipes:
        found.append(
            f"megatron.fp8 is {megatron.fp8!r}, which {cluster.gpu.name} cannot compute; it has"
            f" {', '.join(recipes) or 'no FP8'}"
        )
    return found


def _choose_transport(config: Config, cluster: Cluster) -> Transport:
    """How weights will reach the engines.

    Raises:
        ValueError: ranks and engines cannot be placed, or not as the transport needs it.
    """
    wanted = demand(config.megatron, config.rollout)
    shares = _share_gpus(wanted, cluster.nodes, cluster.gpus_per_node)
    return choose_transport(config.weight_sync.transport, device="cuda", shares_gpus=shares)


@lru_cache(maxsize=256)  # a search asks for thousands of layouts of few sizes
def _share_gpus(wanted: Demand, nodes: int, gpus_per_node: int) -> bool:
    gpus = tuple(str(index) for index in range(gpus_per_node))
    found = [Node(id=str(n), ip=f"node{n}", gpus=gpus) for n in range(nodes)]
    return ranks_beside_engines(place(wanted, found, device="cuda")) is not None


def _warnings(config: Config, cluster: Cluster | None, host: Mapping[str, int]) -> Iterator[str]:
    if cluster is None:
        return
    shared = {name: host[name] for name in SHARED if host[name]}
    yield (
        f"/dev/shm of each node must hold {sum(shared.values()) / GIB:.1f} GiB:"
        f" {' and '.join(shared)} (a container has 64 MiB unless it is told, docker run --shm-size)"
    )
    total = sum(host.values())
    if not cluster.host_bytes:
        yield f"a node needs {total / GIB:.0f} GiB of host memory; --host-gib N checks that it fits"
    elif total > cluster.host_bytes:
        most = max(host, key=lambda name: host[name])
        yield (
            f"a node needs {total / GIB:.0f} GiB of host memory and has"
            f" {cluster.host_bytes / GIB:.0f}; most is {most}: {_HOST_REMEDIES[most]}"
        )
    yield from environment_warnings(config, os.environ)


def _seconds(
    config: Config,
    architecture: Architecture,
    engine: EnginePlan,
    cluster: Cluster | None,
    micro_batches: int,
    assumed: Assumptions,
    transport: Transport,
    judge: JudgePlan | None,
) -> dict[str, float]:
    if cluster is None or not engine.sequences:
        return {}  # no rates are stated for a CPU, and no engine without a sequence gets anywhere
    return step_seconds(
        config,
        architecture,
        engine,
        gpu=cluster.gpu,
        micro_batches=micro_batches,
        assumed=assumed,
        transport=transport,
        judge_calls=judge.step.calls if judge else 0.0,
    )


def to_json(plan: Plan) -> str:
    """The plan as JSON text."""
    return json.dumps(plan.as_dict(), indent=2, allow_nan=False)
