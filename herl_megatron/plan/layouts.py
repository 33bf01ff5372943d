"""Another layout for a run that does not fit: the first of a short list that does.

Tried are TP within a node, PP, CP where one longest row fills a micro-batch, EP, experts whole or
cut like all else, and recomputation, over the same number of ranks; those with fewer ranks per
model copy come first, because they talk less, then those without recomputation. Experts that are
spread over several nodes make a copy count as so many times as large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from herl_megatron.config.schema import Config, MegatronConfig
from herl_megatron.megatron.meta import RankBytes, rank_bytes, stage_ranks
from herl_megatron.plan.build import Plan, find_problems, make_plan
from herl_megatron.plan.cluster import Assumptions, Cluster
from herl_megatron.plan.engine import model_parameters, plan_engine
from herl_megatron.plan.memory import largest_micro_batch
from herl_megatron.weight_sync.hf_config import read_architecture
from herl_megatron.weight_sync.hf_names import Architecture

_MOST_STAGES = 16
_MOST_CONTEXT = 16
_MOST_BUILT = 12  # candidates whose model is built; each takes up to some seconds


@dataclass(frozen=True)
class Suggestion:
    """Overrides that make a configuration fit, its plan, and why these."""

    overrides: tuple[str, ...]
    plan: Plan
    why: str


def suggest(
    config: Config, shape: Path, *, cluster: Cluster, assumed: Assumptions
) -> Suggestion | str:
    """The first layout that fits, or why none was found."""
    architecture = read_architecture(str(shape))
    config, engine_overrides = _mend_engine(config, architecture, cluster, assumed)
    if engine_overrides is None:
        return "no engine layout within a node holds the weights and one longest sequence"
    built: dict[MegatronConfig, tuple[RankBytes, ...]] = {}
    planned = too_large = 0
    for megatron in _candidates(config, architecture, cluster):
        candidate = config.model_copy(update={"megatron": megatron})
        room = cluster.gpu.memory_bytes * (1 - config.rollout.gpu_memory_utilization)
        if find_problems(candidate, shape, cluster):
            continue
        if _least_bytes(architecture, megatron) > room:
            too_large += 1
            continue
        same_parameters = _without_activations(megatron)
        if same_parameters not in built:
            if len(built) == _MOST_BUILT:
                break
            built[same_parameters] = rank_bytes(architecture, megatron, stage_ranks(megatron))
        planned += 1
        plan = make_plan(
            candidate, shape, cluster=cluster, assumed=assumed, ranks=built[same_parameters]
        )
        if plan.fits:
            changed = _overrides(config.megatron, megatron)
            why = (
                f"fewest ranks per model copy that fit: {too_large} smaller layouts are too large"
                f" by weights, gradients and optimizer alone, {planned - 1} by activations too"
            )
            return Suggestion((*engine_overrides, *changed), plan, why)
    return (
        f"no layout of {config.megatron.world_size} ranks fits ({too_large} too large by weights"
        f" alone, {planned} planned in full): more nodes, a smaller megatron.micro_batch_tokens, or"
        " a smaller rollout.gpu_memory_utilization"
    )


def _without_activations(megatron: MegatronConfig) -> MegatronConfig:
    """The layout that ranks of this one share their parameters' bytes with: CP ranks hold copies,
    as DP ranks do."""
    copies = megatron.context_parallel * megatron.data_parallel
    return megatron.model_copy(
        update={"context_parallel": 1, "data_parallel": copies, "recompute": "none"}
    )


def _mend_engine(
    config: Config, architecture: Architecture, cluster: Cluster, assumed: Assumptions
) -> tuple[Config, tuple[str, ...] | None]:
    """The smallest engine TP that holds one longest sequence, over as many GPUs as before."""
    rollout = config.rollout
    if plan_engine(architecture, config, gpu=cluster.gpu, assumed=assumed).sequences:
        return config, ()
    gpus = rollout.replicas * rollout.tensor_parallel
    for tp in _divisors(cluster.gpus_per_node):
        if tp <= rollout.tensor_parallel or architecture.num_heads % tp:
            continue
        replicas = max(1, gpus // tp)
        update = {"tensor_parallel": tp, "replicas": replicas}
        mended = config.model_copy(update={"rollout": rollout.model_copy(update=update)})
        if plan_engine(architecture, mended, gpu=cluster.gpu, assumed=assumed).sequences:
            return mended, (f"rollout.tensor_parallel={tp}", f"rollout.replicas={replicas}")
    return config, None


def _candidates(
    config: Config, architecture: Architecture, cluster: Cluster
) -> Iterator[MegatronConfig]:
    """Layouts of as many ranks, best first; rules are checked by the caller."""
    world = min(config.megatron.world_size, cluster.gpus)
    sizes = []
    for tp, pp, cp in product(
        _divisors(cluster.gpus_per_node),
        [pp for pp in _divisors(architecture.num_layers) if pp <= _MOST_STAGES],
        _divisors(_MOST_CONTEXT) if _one_row_fills_it(config) else [1],
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
        for ep in _divisors(architecture.experts.count)
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


def _overrides(before: MegatronConfig, after: MegatronConfig) -> tuple[str, ...]:
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return tuple(f"megatron.{key}={_text(new[key])}" for key in new if new[key] != old[key])


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower()


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
