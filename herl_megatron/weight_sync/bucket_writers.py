"""A bucket on its way to the shared memory of every machine that has engines.

One rank per machine writes it there, to the same path. The rank that gathered the bucket broadcasts
it to them tensor by tensor, over a process group of their own (gloo on CPU, NCCL on GPUs), and
writes its own copy meanwhile. The others hold two tensors at most: one being written, one arriving.
On one machine there is no such group, and the bucket is written as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from herl_megatron.engine import Bucket
from herl_megatron.weight_sync.buckets import BucketPlan
from herl_megatron.weight_sync.transport import lay_out, write_bucket, write_tensors


class BucketWriters:
    """This rank's part in writing buckets on every machine.

    Build it on all ranks at the same time: the groups are made together.
    """

    def __init__(
        self,
        plan: Sequence[BucketPlan],
        writers: Sequence[Sequence[int]],
        *,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        """`writers`: per pipeline stage the ranks that write its buckets, one per machine, the one
        that gathers them first."""
        self._plan = plan
        self._writers = writers
        self._device = device
        self._groups = [
            dist.new_group(list(ranks), timeout=timedelta(seconds=timeout_s))
            if len(ranks) > 1
            else None
            for ranks in writers
        ]

    def write(
        self, index: int, tensors: Sequence[tuple[str, torch.Tensor]] | None, path: str
    ) -> Bucket | None:
        """Write bucket `index` to `path` of this machine, if this rank is one of its writers.

        tensors: the whole bucket on the rank that gathered it, which returns its layout; None on
            all others.

        Raises:
            ValueError: this machine's shared memory is full.
        """
        planned = self._plan[index]
        group = self._groups[planned.pp_stage]
        if group is None:
            return None if tensors is None else write_bucket(path, tensors)
        source = self._writers[planned.pp_stage][0]
        if tensors is not None:
            assert [name for name, _ in tensors] == [entry.name for entry in planned.tensors]
            sent = _send((tensor for _, tensor in tensors), source=source, group=group)
        elif dist.get_rank() in self._writers[planned.pp_stage]:
            sizes = [entry.num_bytes for entry in planned.tensors]
            sent = _receive(sizes, source=source, group=group, device=self._device)
        else:
            return None
        bucket = lay_out(path, [(item.name, item.dtype, item.shape) for item in planned.tensors])
        write_tensors(bucket, sent)
        return None if tensors is None else bucket


def _send(
    tensors: Iterator[torch.Tensor], *, source: int, group: dist.ProcessGroup
) -> Iterator[torch.Tensor]:
    """Broadcast each tensor as bytes, and give it out while it is on its way."""
    for tensor in tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        work = dist.broadcast(raw, source, group=group, async_op=True)
        yield raw
        work.wait()


def _receive(
    sizes: Sequence[int], *, source: int, group: dist.ProcessGroup, device: torch.device
) -> Iterator[torch.Tensor]:
    """The bytes of each tensor; the next one arrives while the last is used."""
    arriving: tuple[torch.Tensor, dist.Work] | None = None
    for size in [*sizes, None]:
        following = None
        if size is not None:
            raw = torch.empty(size, dtype=torch.uint8, device=device)
            following = raw, dist.broadcast(raw, source, group=group, async_op=True)
        if arriving is not None:
            raw, work = arriving
            work.wait()
            yield raw
        arriving = following
