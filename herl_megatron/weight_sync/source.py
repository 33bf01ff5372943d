"""A stream of whole Hugging Face tensors from a sharded Megatron model, one bucket at a time.

    source = WeightSource(chunks, architecture, config, bucket_bytes=256 << 20, groups=groups)
    for bucket in source.plan():               # the same on every rank
        tensors = source.gather(bucket.index)  # every rank of that bucket's stage calls this

Each parameter is gathered over TP straight to the sending rank, in its place inside one buffer;
expert parameters then travel over EP to the same rank. A bucket exists only on its sending rank.
Extra memory there is at most the bucket plus one gathered parameter, elsewhere one local shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.dtypes import compute_dtype
from herl_megatron.models.groups import Groups
from herl_megatron.models.local_parameters import local_parameters
from herl_megatron.models.parameters import Parameter, unfuse
from herl_megatron.weight_sync.buckets import BucketPlan, plan_buckets


class WeightSource:
    """HF-named, full-shape tensors of a model's current weights."""

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        architecture: Architecture,
        config: MegatronConfig,
        *,
        bucket_bytes: int,
        groups: Groups,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` of the stream; none sends the compute dtype (`config.precision`)."""
        self.architecture = architecture
        self._groups = groups
        self._dtype = compute_dtype(config) if dtype is None else dtype
        self._plan = plan_buckets(
            architecture, config, bucket_bytes=bucket_bytes, dtype=self._dtype
        )
        self._local = local_parameters(chunks, architecture, groups)

    def plan(self) -> tuple[BucketPlan, ...]:
        """The buckets in the order in which they are sent, identical on all ranks."""
        return self._plan

    @property
    def takes_part(self) -> bool:
        """Whether this rank must call `gather` for the buckets of its pipeline stage."""
        return self._groups.in_first_replica

    @torch.no_grad()
    def gather(self, index: int) -> list[tuple[str, torch.Tensor]] | None:
        """Bucket `index` on its sending rank (stage's TP, CP, DP and EP rank 0), else None.

        Collective over the ranks of the bucket's stage that have `takes_part`; on all other ranks
        it returns at once. Tensors may share memory with the model: use them before it changes.
        """
        bucket = self._plan[index]
        if bucket.pp_stage != self._groups.pp.rank or not self.takes_part:
            return None
        tensors: list[tuple[str, torch.Tensor]] = []
        for parameter in bucket.parameters:
            shards = self._gather_parameter(parameter)
            if shards is not None:
                whole = unfuse(parameter, shards, self.architecture)
                tensors += zip(parameter.hf_names, whole, strict=True)
        sends = self._groups.dp_cp.is_first and self._groups.tp.is_first
        assert bool(tensors) == sends, f"bucket {index} gathered on the wrong rank"
        return tensors if sends else None

    def _gather_parameter(self, parameter: Parameter) -> torch.Tensor | None:
        """All TP shards `[tp, *shard]` on the sending rank, None on the others."""
        groups = self._groups
        replicas = groups.dp_cp if parameter.expert is None else groups.expert_dp
        if not replicas.is_first:
            return None
        if parameter.expert is None:
            return self._gather_tp(parameter)
        assert self.architecture.experts is not None
        owner = parameter.expert // (self.architecture.experts.count // groups.ep.size)
        if groups.ep.rank == owner:
            shards = self._gather_tp(parameter)
            if owner == 0 or shards is None:
                return shards
            dist.send(shards, groups.ep.global_rank(0), group=groups.ep.group)
            return None
        if groups.ep.is_first and groups.expert_tp.is_first:
            return self._receive(parameter, owner)
        return None

    def _gather_tp(self, parameter: Parameter) -> torch.Tensor | None:
        """All TP shards on TP rank 0, written side by side into one buffer."""
        axis = self._groups.tp if parameter.expert is None else self._groups.expert_tp
        shard = self._local[parameter.name].detach().to(self._dtype).contiguous()
        if axis.size == 1 or parameter.replicated:
            return shard[None] if axis.is_first else None
        if not axis.is_first:
            dist.gather(shard, dst=axis.global_rank(0), group=axis.group)
            return None
        shards = shard.new_empty((axis.size, *shard.shape))
        dist.gather(shard, list(shards.unbind(0)), dst=axis.global_rank(0), group=axis.group)
        return shards

    def _receive(self, parameter: Parameter, owner: int) -> torch.Tensor:
        """The TP shards of another EP rank's expert; all experts have the same shapes."""
        groups = self._groups
        like = self._local[_first_expert(parameter)]
        shards = torch.empty(
            (groups.expert_tp.size, *like.shape), dtype=self._dtype, device=like.device
        )
        dist.recv(shards, groups.ep.global_rank(owner), group=groups.ep.group)
        return shards


def _first_expert(parameter: Parameter) -> str:
    """Name of the same parameter of expert 0, which EP rank 0 holds."""
    return parameter.name.replace(f".experts.{parameter.expert}.", ".experts.0.")
