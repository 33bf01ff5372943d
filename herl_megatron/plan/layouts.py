"""Another layout for a trainer that does not fit: the first of a short list that does.

Tried are TP within a node, PP, CP where one longest row fills a micro-batch, EP, experts whole or
cut like all else, and recomputation, over the same number of ranks; those with fewer ranks per
model copy come first, because they talk less, then those without recomputation. Experts that are
spread over several nodes make a copy count as so many times as large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from herl_megatron.config.schema import Config, MegatronConfig
from herl_megatron.megatron.meta import RankBytes, rank_bytes, stage_ranks
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.flops import model_parameters
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.models.stages import chunk_sizes
from herl_megatron.plan.activations import chunk_layers
from herl_megatron.plan.build import Plan, find_problems, make_plan
from herl_megatron.plan.engine_memory import plan_engine
from herl_megatron.plan.machines import GIB, Assumptions, Cluster
from herl_megatron.plan.rank_memory import largest_micro_batch

_MOST_STAGES = 16
_LONGEST_STAGE = 1.05  # layers of the longest stage over those of the mean one
_MOST_CONTEXT = 16
_MOST_BUILT = 12  # layouts whose model is built; each takes up to some seconds
_SIZES = (
    "tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel",
    "expert_tensor_parallel", "data_parallel",
)  # fmt: skip


class Layouts:
    """Searches layouts; what one search counted serves the next."""

    def __init__(self, shape: Path, assumed: Assumptions) -> None:
        self._shape = shape
        self._architecture = read_architecture(str(shape))
        self._assumed = assumed
        self._built: dict[MegatronConfig, tuple[RankBytes, ...]] = {}
        self._searched: set[MegatronConfig] = set()

    def fitting_plan(
        self, config: Config, cluster: Cluster, *, searching: bool = False
    ) -> Plan | None:
        """The plan if it fits; what is held is looked at first. In a search, None also where it
        would be one model too many to build."""
        engine = plan_engine(self._architecture, config, gpu=cluster.gpu, assumed=self._assumed)
        room = cluster.gpu.memory_bytes - self._assumed.reserve_gib * GIB - engine.budget_bytes
        if _least_bytes(self._architecture, config.megatron) > room:  # no rank has less than that
            return None
        if searching and not self._may_build(config.megatron):
            return None
        ranks = self._ranks(config.megatron)
        if max(rank.total_bytes for rank in ranks) > room:
            return None
        assumed = self._assumed
        plan = make_plan(config, self._shape, cluster=cluster, assumed=assumed, ranks=ranks)
        return plan if plan.fits else None

    def find(self, config: Config, cluster: Cluster) -> tuple[MegatronConfig, Plan] | None:
        """The first other layout that fits; None for none of those tried."""
        for megatron in _candidates(config, self._architecture, cluster):
            candidate = config.model_copy(update={"megatron": megatron})
            if _sizes(megatron) == _sizes(config.megatron):
                continue
            if find_problems(candidate, self._shape, cluster):
                continue
            if plan := self.fitting_plan(candidate, cluster, searching=True):
                return megatron, plan
        return None

    def _may_build(self, megatron: MegatronConfig) -> bool:
        key = _key(megatron)
        if key in self._built:
            return True
        self._searched.add(key)
        return len(self._searched) <= _MOST_BUILT

    def _ranks(self, megatron: MegatronConfig) -> tuple[RankBytes, ...]:
        key = _key(megatron)
        if key not in self._built:
            self._built[key] = stages_bytes(self._architecture, megatron)
        return self._built[key]


def stages_bytes(architecture: Architecture, megatron: MegatronConfig) -> tuple[RankBytes, ...]:
    """`rank_bytes` of the stages' first ranks; of stages with the same layers one is built."""
    ranks = stage_ranks(megatron)
    kinds = [_kind(architecture, megatron, stage) for stage in range(len(ranks))]
    first: dict[object, int] = {}
    for kind, rank in zip(kinds, ranks, strict=True):
        first.setdefault(kind, rank)
    built = rank_bytes(architecture, megatron, tuple(first.values()))
    of_kind = dict(zip(first, built, strict=True))
    return tuple(
        replace(of_kind[kind], rank=rank, pp_rank=stage)
        for stage, (kind, rank) in enumerate(zip(kinds, ranks, strict=True))
    )


def _kind(architecture: Architecture, megatron: MegatronConfig, stage: int) -> object:
    """What the parameters of a stage depend on: which of its layers have experts, and whether it
    has the embedding or the output."""
    chunks = chunk_layers(architecture, megatron, stage)
    experts = architecture.experts.layers if architecture.experts else ()
    layers = tuple(bool(experts) and bool(experts[layer]) for chunk in chunks for layer in chunk)
    return layers, stage == 0, stage == megatron.pipeline_parallel - 1


def _key(megatron: MegatronConfig) -> MegatronConfig:
    """The layout that ranks of this one share their parameters' bytes with: CP ranks hold copies,
    as DP ranks do, and activations are not counted."""
    copies = megatron.context_parallel * megatron.data_parallel
    return megatron.model_copy(
        update={
            "context_parallel": 1,
            "data_parallel": copies,
            "recompute": "none",
            "micro_batch_tokens": 1,
            "reference": "resident",
        }
    )


def _sizes(megatron: MegatronConfig) -> tuple[object, ...]:
    values = dict(megatron)
    return tuple(values[name] for name in _SIZES)


def _candidates(
    config: Config, architecture: Architecture, cluster: Cluster
) -> Iterator[MegatronConfig]:
    """Layouts of as many ranks, best first; rules are checked by the caller."""
    world = min(config.megatron.world_size, cluster.gpus)
    sizes = []
    for tp, pp, cp in product(
        divisors(cluster.gpus_per_node),
        _stage_counts(architecture.num_layers),
        divisors(_MOST_CONTEXT) if _one_row_fills_it(config) else [1],
    ):
        if world % (tp * pp * cp) == 0:
            sizes += [
                (tp * pp * cp * _nodes(ep * etp, cluster), pp, cp, ep * etp, etp, recompute, tp)
                for ep, etp in _expert_sizes(architecture, tp, world // pp)
                for recompute in (False, True)
            ]
    for _, pp, cp, expert_ranks, etp, recompute, tp in sorted(sizes):
        yield config.megatron.model_copy(
            update={
                "tensor_parallel": tp,
                "pipeline_parallel": pp,
                "virtual_pipeline": None,
                "context_parallel": cp,
                "expert_parallel": expert_ranks // etp,
                "expert_tensor_parallel": None if etp == tp else etp,
                "data_parallel": world // (tp * pp * cp),
                "sequence_parallel": tp > 1,
                "distributed_optimizer": True,
                "recompute": "full" if recompute else "none",
            }
        )


def _stage_counts(num_layers: int) -> list[int]:
    """Numbers of stages that hold about equally many layers."""
    return [
        pp
        for pp in range(1, min(_MOST_STAGES, num_layers) + 1)
        if max(chunk_sizes(num_layers, pp)) * pp <= _LONGEST_STAGE * num_layers
    ]


def _one_row_fills_it(config: Config) -> bool:
    """Whether the longest row alone makes the largest micro-batch; where two rows fit into one, a
    smaller `megatron.micro_batch_tokens` saves as much as CP and costs less."""
    whole = largest_micro_batch(
        config.model_copy(
            update={"megatron": config.megatron.model_copy(update={"context_parallel": 1})}
        )
    )
    return 2 * whole.longest_row > whole.tokens


def _expert_sizes(architecture: Architecture, tp: int, of_stage: int) -> list[tuple[int, int]]:
    """EP and ETP: an expert whole or cut as all else is, on the ranks of a pipeline stage."""
    if architecture.experts is None:
        return [(1, tp)]
    return [
        (ep, etp)
        for ep in divisors(architecture.experts.count)
        for etp in {1, tp}
        if of_stage % (ep * etp) == 0
    ]


def _nodes(ranks: int, cluster: Cluster) -> int:
    """Nodes that neighbouring ranks lie on."""
    return -(-ranks // cluster.gpus_per_node)


def _least_bytes(architecture: Architecture, megatron: MegatronConfig) -> float:
    """Weights, gradients and optimizer of an average rank, without building anything."""
    total = model_parameters(architecture)
    experts = 0
    if architecture.experts is not None:
        of_layer = 3 * architecture.hidden_size * architecture.experts.ffn_size
        experts = of_layer * architecture.experts.count * sum(architecture.experts.layers)
    own, shared = (6, 12) if megatron.precision == "bf16" else (8, 8)
    needed = 0.0
    for parameters, shards in (
        (total - experts, megatron.tensor_parallel),
        (experts, megatron.etp * megatron.expert_parallel),
    ):
        replicas = megatron.stage_ranks / shards
        needed += parameters / (shards * megatron.pipeline_parallel) * (own + shared / replicas)
    return needed


def divisors(number: int) -> list[int]:
    """From 1 to the number itself."""
    return [n for n in range(1, number + 1) if number % n == 0]
