"""Weight buckets in shared memory: one file of raw tensor bytes, its layout travelling apart.

A trainer rank writes a bucket, engines on the same machine map it without a copy. Files lie in a
private folder under /dev/shm that belongs to one run (`bucket_folder`).
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from herl_megatron.engine import Bucket, BucketTensor
from herl_megatron.weight_sync.bucket_folder import free_bytes

_ALIGNMENT_BYTES = 64  # one cache line, and enough for every dtype and vector load
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.bfloat16, torch.float16, torch.float64,
        torch.int64, torch.int32, torch.int8, torch.uint8, torch.float8_e4m3fn,
    )
}  # fmt: skip


def write_bucket(path: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> Bucket:
    """Write tensors to the file at `path` and return their layout.

    The file is made or grown as needed and never shrunk: the next bucket reuses its pages.

    Raises:
        ValueError: the file system of `path` is full (bytes needed and free), or a tensor's dtype
            cannot be sent.
    """
    items = list(tensors)
    bucket = lay_out(
        path,
        [(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in items],
    )
    write_tensors(bucket, (tensor for _, tensor in items))
    return bucket


def lay_out(path: str, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Bucket:
    """The layout of a bucket of these (name, dtype name, shape) in the file at `path`.

    Raises:
        ValueError: a dtype cannot be sent.
    """
    layout, end = [], 0
    for name, dtype, shape in tensors:
        if dtype not in _DTYPES:
            raise ValueError(f"tensor {name!r} has dtype {dtype}; sent can be {', '.join(_DTYPES)}")
        layout.append(BucketTensor(name, dtype, shape, end))
        end += _aligned(math.prod(shape) * _DTYPES[dtype].itemsize)
    return Bucket(path=path, num_bytes=end, tensors=tuple(layout))


def write_tensors(bucket: Bucket, tensors: Iterable[torch.Tensor]) -> None:
    """Write the bucket's tensors, which may come one by one and as plain bytes, to its file.

    Raises:
        ValueError: the file system is full (bytes needed and free).
    """
    try:
        _write(
            bucket.path,
            ((entry.offset, tensor) for entry, tensor in zip(bucket.tensors, tensors, strict=True)),
        )
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"no room for a weight bucket of {bucket.num_bytes} bytes in {bucket.path}: "
            f"{free_bytes(Path(bucket.path).parent)} bytes are free; lower weight_sync.bucket_bytes"
            " or enlarge the shared memory"
        ) from error


def read_bucket(bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the bucket's (name, tensor): views of the file, valid until it is written again.

    Raises:
        ValueError: the file is shorter than the bucket says.
    """
    if bucket.num_bytes == 0:
        buffer = torch.empty(0, dtype=torch.uint8)
    else:
        size = os.path.getsize(bucket.path)
        if size < bucket.num_bytes:
            raise ValueError(
                f"{bucket.path} has {size} bytes, the bucket needs {bucket.num_bytes}; it was cut "
                "or belongs to another bucket"
            )
        # A private mapping: a reader's write would never reach the file.
        buffer = torch.from_file(
            bucket.path, shared=False, size=bucket.num_bytes, dtype=torch.uint8
        )
    for entry in bucket.tensors:
        yield entry.name, tensor_view(buffer, entry)


def _write(path: str, tensors: Iterable[tuple[int, torch.Tensor]]) -> None:
    """Write each tensor at its offset.

    Plain writes, not a mapping: on a full tmpfs they fail instead of killing the process, and they
    need no page faults, which makes them twice as fast.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        for offset, tensor in tensors:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            data: memoryview = raw.numpy().data
            while data:  # one call writes at most 2 GiB
                written = os.pwrite(handle, data, offset)
                data, offset = data[written:], offset + written
        if os.fstat(handle).st_size % _ALIGNMENT_BYTES:
            os.ftruncate(handle, _aligned(os.fstat(handle).st_size))
    finally:
        os.close(handle)


def tensor_view(buffer: torch.Tensor, entry: BucketTensor) -> torch.Tensor:
    """The tensor inside a bucket's bytes, without a copy."""
    dtype = _DTYPES[entry.dtype]
    size = math.prod(entry.shape) * dtype.itemsize
    return buffer[entry.offset : entry.offset + size].view(dtype).view(entry.shape)


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
