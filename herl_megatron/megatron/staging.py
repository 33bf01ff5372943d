"""Host memory for a copy of tensors that are written to disk while training changes them."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from herl_megatron.device import StreamMark, beside, page_lock, page_unlock

_ALIGN_BYTES = 64
_THREADS = 4


class StagingMemory:
    """One block of memory, as large as the largest copy so far.

    It is kept between copies: to get memory from the kernel page by page takes several times as
    long as the copy itself.
    """

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the block."""
        return 0 if self._block is None else len(self._block)

    def copy(
        self, tensors: Sequence[torch.Tensor], *, after: StreamMark | None = None
    ) -> list[torch.Tensor]:
        """Contiguous copies in host memory, each a storage of its own; the last copies are void.

        after: `device.mark_work()` of the thread that made the tensors; a GPU then copies what
            they are at that point, beside its other work.
        """
        starts, end = [], 0
        for tensor in tensors:
            starts.append(end)
            end += -(-tensor.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
        if after is None:
            self._make_room(end)
            with ThreadPoolExecutor(_THREADS) as threads:  # one alone does not fill the memory bus
                return list(threads.map(self._copy, tensors, starts))
        with beside(after):  # inside, this thread is on the tensors' GPU
            self._make_room(end)
            return [self._copy(*pair) for pair in zip(tensors, starts, strict=True)]

    def _make_room(self, num_bytes: int) -> None:
        if num_bytes <= self.num_bytes:
            return
        if self._block is not None:
            page_unlock(_address(self._block))
            self._block = None  # given back before there is a new one
        self._block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            self._block.madvise(mmap.MADV_HUGEPAGE)
        page_lock(_address(self._block), num_bytes)

    def _copy(self, tensor: torch.Tensor, start: int) -> torch.Tensor:
        if tensor.numel() == 0:
            return tensor.detach().cpu().clone()
        assert self._block is not None
        flat = torch.frombuffer(self._block, dtype=tensor.dtype, count=tensor.numel(), offset=start)
        return flat.view(tensor.shape).copy_(tensor.detach(), non_blocking=True)


def _address(block: mmap.mmap) -> int:
    return torch.frombuffer(block, dtype=torch.uint8, count=1).data_ptr()


def exact_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same host memory as a storage that holds these values only, so that nobody has to copy
    them to write them; a tensor of another device as it is."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu" or tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return torch.frombuffer(raw, dtype=tensor.dtype).view(tensor.shape)
