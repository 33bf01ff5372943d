"""Memory that each thread uses again for one tensor after the other.

Fresh memory for every tensor costs more than the copy into it: the kernel clears it page by page.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch


class Scratch:
    """One block per thread, as large as the largest tensor so far."""

    def __init__(self) -> None:
        self._local = threading.local()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in a storage of exactly its size; this thread's last one is void."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if not num_bytes:
            return torch.empty(tuple(shape), dtype=dtype)
        block: torch.Tensor | None = self._local.__dict__.get("block")
        if block is None or block.nbytes < num_bytes:
            self._local.block = None  # given back before there is a larger one
            self._local.block = block = torch.empty(num_bytes, dtype=torch.uint8)
        return torch.frombuffer(block.numpy()[:num_bytes], dtype=dtype).view(tuple(shape))

    def dense(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`values` themselves if they are contiguous and of this dtype, else a copy that is."""
        if values.dtype is dtype and values.is_contiguous():
            return values
        return self.empty(values.shape, dtype).copy_(values)
