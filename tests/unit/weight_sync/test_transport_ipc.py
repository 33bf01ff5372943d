"""Buckets in device memory, with a file per GPU and buffer in place of its memory.

What CUDA does (export, map, synchronise) is behind `Memory` and is tested in tests/gpu.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from herl_megatron.engine import Bucket, BucketTensor
from herl_megatron.models.parameters import Layout, Parameter
from herl_megatron.weight_sync.buckets import BucketPlan, PlannedTensor
from herl_megatron.weight_sync.transport_ipc import PATHS, DeviceBuckets, Handle, MappedBuckets
from tests.distributed.harness import run_ranks

SHAPES = {"a": (3, 5), "b": (40,), "c": (2, 2), "d": (7,)}
STAGES = (("a", "b"), ("c",), ("d",))  # tensors of buckets 0, 1 and 2
PP_STAGES = (0, 0, 1)


def plan() -> list[BucketPlan]:
    parameter = Parameter("p", Layout.PLAIN, (), ())
    return [
        BucketPlan(
            index, stage, (parameter,),
            tuple(
                PlannedTensor(n, "float32", SHAPES[n], 4 * torch.Size(SHAPES[n]).numel())
                for n in names
            ),
        )
        for index, (names, stage) in enumerate(zip(STAGES, PP_STAGES, strict=True))
    ]  # fmt: skip


def values(name: str, version: int) -> torch.Tensor:
    shape = SHAPES[name]
    return torch.arange(torch.Size(shape).numel()).view(shape).float() + 100 * version + ord(name)


@dataclass
class FileMemory:
    """Files that every process can map: a device's memory, and what was asked of it."""

    folder: Path
    gpu: str
    maps: int = 0
    finished: int = 0
    exported: list[str] = field(default_factory=list)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        path = self.folder / f"{self.gpu}-{len(self.exported)}-{os.getpid()}"
        self.exported.append(str(path))
        return torch.from_file(str(path), shared=True, size=num_bytes, dtype=torch.uint8)

    def export(self, buffer: torch.Tensor) -> Handle:
        return buffer.untyped_storage().filename, len(buffer)

    def map(self, handle: Handle) -> torch.Tensor:
        self.maps += 1
        return torch.from_file(handle[0], shared=True, size=handle[1], dtype=torch.uint8)

    def finish(self) -> None:
        self.finished += 1


def work(rank: int, world_size: int, init_method: str, folder: Path) -> list[list[Any]]:
    """Two syncs by the ranks of three GPUs; rank 2's stage is the second, GPU 1 has no engine."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size)
    # Engines beside ranks 0 and 2; rank 0 gathers stage 0, rank 2 stage 1.
    ours, theirs = FileMemory(folder, f"GPU-{rank}"), FileMemory(folder, f"GPU-{rank}")
    sender = DeviceBuckets(plan(), ((0, 2), (2, 0)), memory=ours, timeout_s=30)
    receiver = MappedBuckets(theirs)
    syncs = []
    for version in (1, 2):
        got: list[Any] = []
        for index, names in enumerate(STAGES):
            gathers = rank == (0, 0, 2)[index]
            tensors = [(name, values(name, version)) for name in names] if gathers else None
            written = sender.write(index, tensors, PATHS[index % 2])
            layouts: list[Bucket | None] = [None] * world_size
            dist.all_gather_object(layouts, written)
            (bucket,) = [layout for layout in layouts if layout is not None]
            if rank != 1:
                read = {name: tensor.clone() for name, tensor in receiver.read(bucket)}
                got.append((sorted(bucket.handles), read))
            dist.barrier()
        syncs.append(got)
    syncs.append([theirs.maps, ours.finished, len(ours.exported)])
    dist.destroy_process_group()
    return syncs


def test_each_gpu_with_an_engine_gets_every_bucket(tmp_path: Path) -> None:
    results = run_ranks(work, 3, tmp_path, limit_s=60)
    for rank in (0, 2):
        for version, sync in enumerate(results[rank][:2], 1):
            for index, (handles, read) in enumerate(sync):
                # Handles travel with a buffer's first bucket of a sync, for both engines' GPUs.
                assert handles == (["GPU-0", "GPU-2"] if index < 2 else [])
                assert list(read) == list(STAGES[index])
                for name, tensor in read.items():
                    assert torch.equal(tensor, values(name, version)), (rank, index, name)
        # Two buffers, mapped once for both syncs; the device was waited for at every bucket.
        assert results[rank][2] == [2, 6, 2]
    assert results[1] == [[], [], [0, 0, 0]], "a rank without an engine holds buffers"


def test_a_new_buffer_is_mapped_and_a_foreign_gpu_is_named(tmp_path: Path) -> None:
    memory = FileMemory(tmp_path, "GPU-0")
    one = (BucketTensor("x", "float32", (1,), 0),)
    mapped = MappedBuckets(memory)
    for number in (1.0, 2.0):  # another trainer, after a restart
        content = torch.from_file(
            str(tmp_path / f"buffer{number}"), shared=True, size=1, dtype=torch.float32
        )
        content.fill_(number)
        handle = (str(tmp_path / f"buffer{number}"), 4)
        entry = Bucket(PATHS[0], 4, one, {"GPU-0": handle})
        ((_, tensor),) = mapped.read(entry)
        assert tensor.tolist() == [number]
    assert memory.maps == 2
    with pytest.raises(RuntimeError, match="GPU-0, only on GPU-7; set weight_sync.transport"):
        list(mapped.read(Bucket(PATHS[1], 4, one, {"GPU-7": ("nowhere", 4)})))
