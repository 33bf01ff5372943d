"""Weight buckets in GPU memory: engines on the trainer's GPUs read them in place, through CUDA IPC.

A trainer rank and an engine's worker share a GPU and see no other, so each GPU with a worker needs
the bucket in its own memory: the rank that gathered it broadcasts it to the ranks beside workers
(NCCL), into one of two flat buffers that each of them keeps for the whole run. A buffer is exported
once. Its handle travels with the first bucket of a sync that lies in it, layouts with every bucket;
a worker finds the handle of its GPU by UUID and maps the buffer once, because opening and closing
handles costs more than the copies.

Both sides finish their work on the GPU before they answer the driver, and it reuses a buffer only
after all engines have loaded it. So no event crosses processes. `Memory` is what CUDA is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from herl_megatron.device import finish_work, gpu_uuid
from herl_megatron.engine import Bucket
from herl_megatron.weight_sync.buckets import BucketPlan
from herl_megatron.weight_sync.transport import lay_out, tensor_view

PATHS = ("cuda_ipc:0", "cuda_ipc:1")
"""In place of files: the buffers, used in turn."""
Handle = tuple[Any, ...]


class Memory(Protocol):
    """Memory of one device that other processes on it can map."""

    @property
    def gpu(self) -> str:
        """Identity of the device, the same in every process."""
        ...

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """A flat buffer, `[num_bytes]` uint8."""
        ...

    def export(self, buffer: torch.Tensor) -> Handle:
        """What another process needs to map the buffer."""
        ...

    def map(self, handle: Handle) -> torch.Tensor:
        """The exported buffer of another process, for as long as it keeps it."""
        ...

    def finish(self) -> None:
        """Wait until what was started on the device is done."""
        ...


class CudaMemory:
    """A CUDA device's; `device` has an index."""

    def __init__(self, device: torch.device) -> None:
        assert device.index is not None, f"device {device} has no index"
        self._device = device
        self.gpu = gpu_uuid(device)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See `Memory.allocate`."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def export(self, buffer: torch.Tensor) -> Handle:
        """See `Memory.export`: PyTorch's arguments for `rebuild_cuda_tensor`."""
        _, arguments = reduce_tensor(buffer)
        return tuple(arguments)

    def map(self, handle: Handle) -> torch.Tensor:
        """See `Memory.map`."""
        arguments = list(handle)
        arguments[6] = self._device.index  # the device's number here, not there
        buffer: torch.Tensor = rebuild_cuda_tensor(*arguments)
        return buffer

    def finish(self) -> None:
        """See `Memory.finish`."""
        finish_work(self._device)


class DeviceBuckets:
    """The sending half on one trainer rank; `BucketWriters` is the other way to send.

    Build it on all ranks at the same time: groups and handles are exchanged.
    """

    def __init__(
        self,
        plan: Sequence[BucketPlan],
        writers: Sequence[Sequence[int]],
        *,
        memory: Memory,
        timeout_s: float,
    ) -> None:
        """`writers`: per pipeline stage the ranks that need its buckets, the one that gathers them
        first."""
        self._layouts = [_layout(bucket, PATHS[0]) for bucket in plan]
        self._stages = [bucket.pp_stage for bucket in plan]
        self._writers = writers
        self._memory = memory
        limit = timedelta(seconds=timeout_s)
        groups = {
            ranks: dist.new_group(list(ranks), timeout=limit) if len(ranks) > 1 else None
            for ranks in dict.fromkeys(tuple(sorted(ranks)) for ranks in writers)
        }
        self._groups = [groups[tuple(sorted(ranks))] for ranks in writers]
        largest = max(layout.num_bytes for layout in self._layouts)
        needed = any(dist.get_rank() in ranks for ranks in writers)
        self._buffers = [memory.allocate(largest) for _ in PATHS] if needed else []
        mine = (memory.gpu, [memory.export(buffer) for buffer in self._buffers])
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        self._handles = [
            {gpu: handles[slot] for gpu, handles in everyone if handles}
            for slot in range(len(PATHS))
        ]

    def write(
        self, index: int, tensors: Sequence[tuple[str, torch.Tensor]] | None, path: str
    ) -> Bucket | None:
        """Bring bucket `index` into the buffer `path` of every rank that needs it.

        tensors: the whole bucket on the rank that gathered it, which returns its layout; None on
            all others.
        """
        stage, slot = self._stages[index], PATHS.index(path)
        writers, group = self._writers[stage], self._groups[stage]
        if dist.get_rank() not in writers:
            assert tensors is None, f"bucket {index} was gathered on the wrong rank"
            return None
        bucket = replace(self._layouts[index], path=path)
        flat = self._buffers[slot][: bucket.num_bytes]
        if tensors is not None:
            for entry, (name, tensor) in zip(bucket.tensors, tensors, strict=True):
                assert entry.name == name, f"{name} came in the place of {entry.name}"
                tensor_view(flat, entry).copy_(tensor)
        if group is not None:
            dist.broadcast(flat, writers[0], group=group)
        self._memory.finish()
        if tensors is None:
            return None
        first = index < len(PATHS)  # the sync's first in this buffer
        return replace(bucket, handles=self._handles[slot] if first else {})


class MappedBuckets:
    """The receiving half in one engine worker: buffers of the trainer rank on the same GPU."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._mapped: dict[str, tuple[Handle, torch.Tensor]] = {}

    def read(self, bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the bucket's (name, tensor): views of the buffer, valid until it is written again.

        Raises:
            RuntimeError: no trainer rank has a buffer on this GPU.
        """
        if bucket.handles:
            self._map(bucket)
        assert bucket.path in self._mapped, f"{bucket.path} was never exported to this engine"
        _, buffer = self._mapped[bucket.path]
        for entry in bucket.tensors:
            yield entry.name, tensor_view(buffer, entry)

    def _map(self, bucket: Bucket) -> None:
        """Map the buffer, unless it is the one that is mapped."""
        if self._memory.gpu not in bucket.handles:
            raise RuntimeError(
                f"no trainer rank sends weights on this engine's GPU {self._memory.gpu}, only on"
                f" {', '.join(bucket.handles)}; set weight_sync.transport to 'shared_memory'"
            )
        handle = bucket.handles[self._memory.gpu]
        if bucket.path not in self._mapped or self._mapped[bucket.path][0] != handle:
            self._mapped.pop(bucket.path, None)
            self._mapped[bucket.path] = handle, self._memory.map(handle)


def _layout(bucket: BucketPlan, path: str) -> Bucket:
    return lay_out(path, [(tensor.name, tensor.dtype, tensor.shape) for tensor in bucket.tensors])
