"""Where a trainer rank stands in the parallel layout, without importing Megatron-Core."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from herl_megatron.device import Device


@dataclass(frozen=True, eq=False)
class Axis:
    """One direction of the layout: this process's rank in it, its size and its process group."""

    rank: int
    size: int
    group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0 of the axis."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this process is the last rank of the axis."""
        return self.rank == self.size - 1

    def global_rank(self, rank: int) -> int:
        """World rank of the axis's rank `rank`."""
        return dist.get_global_rank(self.group, rank)


@dataclass(frozen=True, eq=False)
class Groups:
    """All axes of the layout as one rank sees them.

    `expert_tp`, `ep` and `expert_dp` arrange a stage's ranks anew for expert parameters, neighbours
    first: a dense parameter has `dp * cp` replicas, an expert parameter `expert_dp`. With
    `expert_tp` of another size than `tp`, a rank may be first in one and not in the other.
    """

    device: Device
    rank: int
    world_size: int
    tp: Axis
    pp: Axis
    vpp: int
    """Model chunks per pipeline rank."""
    cp: Axis
    dp: Axis
    """Data-parallel replicas that see different rows (context-parallel ranks not counted)."""
    dp_cp: Axis
    """All replicas of a dense parameter."""
    ep: Axis
    expert_tp: Axis
    expert_dp: Axis

    @property
    def torch_device(self) -> torch.device:
        """Device of parameters and activations."""
        return self.device.torch

    @property
    def in_first_replica(self) -> bool:
        """Whether this rank takes part in gathering its stage's weights.

        Those of the first replica of either arrangement, of which one holds the other.
        """
        return self.dp_cp.is_first or self.expert_dp.is_first

    @property
    def holds_output(self) -> bool:
        """Whether this rank's last chunk yields logits."""
        return self.pp.is_last
