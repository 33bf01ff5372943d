"""Host memory of a node, and what of it is shared memory (`/dev/shm`).

Per node: the processes; weights of sleeping engines (`rollout.sleep: 1`); the reference model on
the host; two weight buckets, written by one rank of each node unless they stay in GPU memory; Ray's
object store; and the last checkpoint's copy, which every rank keeps for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from herl_megatron.config.schema import Config
from herl_megatron.device import Transport
from herl_megatron.megatron.meta import RankBytes
from herl_megatron.models.dtypes import compute_dtype
from herl_megatron.plan.engine_memory import EnginePlan
from herl_megatron.plan.machines import GIB, Assumptions, Cluster
from herl_megatron.plan.rank_memory import RankPlan, engines_sleep

BUCKETS = "weight buckets"
OBJECTS = "Ray's objects"
SHARED = (BUCKETS, OBJECTS)
"""What lies in shared memory."""


def host_bytes(
    config: Config,
    ranks: Sequence[RankBytes],
    engine: EnginePlan,
    cluster: Cluster,
    assumed: Assumptions,
    *,
    bucket_bytes: int,
    transport: Transport,
) -> dict[str, int]:
    """Host memory of the fullest node of GPUs; `ranks` are the stages' first ranks.

    A checkpoint is copied to the host before it is written: by every rank its shard of the
    optimizer's state, by the first replica of each parameter the weights. One is under way at most.
    """
    megatron, rollout = config.megatron, config.rollout
    here = min(cluster.gpus_per_node, megatron.world_size)
    engine_gpus = min(cluster.gpus_per_node, rollout.replicas * rollout.tensor_parallel)
    kept = rollout.sleep == 1 and engines_sleep(config)
    on_host = config.algorithm.kl_coef > 0 and megatron.reference == "host"
    reference = max(rank.parameters for rank in ranks) * compute_dtype(megatron).itemsize
    processes = (here + engine_gpus) * assumed.process_host_gib
    return {
        "processes": int((processes + config.scoring.workers * assumed.scorer_host_gib) * GIB),
        "engines asleep": engine_gpus * engine.weight_bytes if kept else 0,
        "reference": here * reference if on_host else 0,
        "checkpoint": _checkpoint_bytes(config, ranks, per_node=here),
        BUCKETS: 2 * bucket_bytes if transport == "shared_memory" else 0,
        OBJECTS: int(assumed.object_store_gib * GIB),
    }


def cpu_host_bytes(
    config: Config,
    stages: Sequence[RankPlan],
    engine: EnginePlan,
    assumed: Assumptions,
    *,
    bucket_bytes: int,
) -> dict[str, int]:
    """The same where everything runs on one machine's CPU: that is all the memory there is."""
    rollout = config.rollout
    workers = rollout.replicas * rollout.tensor_parallel
    # An engine of several processes has one more, which schedules.
    engines = workers + (rollout.replicas if rollout.tensor_parallel > 1 else 0)
    processes = config.megatron.world_size + engines
    return {
        "trainer ranks": config.megatron.stage_ranks * sum(stage.worst[1] for stage in stages),
        "engines": workers * engine.budget_bytes,
        "processes": int(processes * assumed.process_cpu_gib * GIB),
        BUCKETS: 2 * bucket_bytes,
    }


def _checkpoint_bytes(config: Config, ranks: Sequence[RankBytes], *, per_node: int) -> int:
    megatron = config.megatron
    experts = max(rank.weight_bytes * rank.expert_parameters // rank.parameters for rank in ranks)
    dense = max(rank.weight_bytes for rank in ranks) - experts
    optimizer = max(rank.main_weight_bytes + rank.moment_bytes for rank in ranks)
    first = _most_first_replicas(config, per_node, shards=megatron.tensor_parallel)
    copied = dense * first + optimizer * per_node
    if experts:
        shards = megatron.etp * megatron.expert_parallel
        copied += experts * _most_first_replicas(config, per_node, shards=shards)
    return copied


def _most_first_replicas(config: Config, per_node: int, *, shards: int) -> int:
    """Ranks of one node, at most, that are the first holder of what they hold.

    The ranks of a stage count through the shards of its parameters (TP; for experts ETP and EP),
    then through the replicas.
    """
    stage = config.megatron.stage_ranks
    first = [rank % stage < shards for rank in range(config.megatron.world_size)]
    return max(sum(first[at : at + per_node]) for at in range(0, len(first), per_node))
