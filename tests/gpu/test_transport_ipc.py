"""Buckets in GPU memory, read by another process on the same GPU.

NOT RUN YET (see conftest.py). Who gets which bucket and when a handle travels is tested on the CPU
(tests/unit/weight_sync); this is about what CUDA does with handles, across processes that come and
go.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from herl_megatron.device import choose_device
from herl_megatron.engine import Bucket
from herl_megatron.weight_sync.transport_ipc import (
    PATHS,
    CudaMemory,
    DeviceBuckets,
    MappedBuckets,
)
from tests.unit.weight_sync.test_transport_ipc import STAGES, plan, values

TIMEOUT_S = 120


def engine(pipe: Connection) -> None:
    """The other process: sends back what it reads of each bucket, and how the device is called."""
    memory = CudaMemory(torch.device("cuda", 0))
    buckets = MappedBuckets(memory)
    while (bucket := pipe.recv()) is not None:
        # The copies are ordered on the stream; `.cpu()` waits for them.
        read = {name: tensor.cpu().numpy() for name, tensor in buckets.read(bucket)}
        pipe.send((memory.gpu, read))


def start() -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=engine, args=(theirs,), daemon=True)
    process.start()
    return process, ours


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[tuple[CudaMemory, DeviceBuckets]]:
    device = choose_device("cuda").torch
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    memory = CudaMemory(device)
    yield memory, DeviceBuckets(plan(), ((0,), (0,)), memory=memory, timeout_s=30)
    dist.destroy_process_group()


def ask(pipe: Connection, bucket: Bucket | None) -> tuple[str, dict[str, object]]:
    pipe.send(bucket)
    assert pipe.poll(TIMEOUT_S), "the other process does not answer"
    answer: tuple[str, dict[str, object]] = pipe.recv()
    return answer


def test_another_process_reads_every_version(
    sender: tuple[CudaMemory, DeviceBuckets],
) -> None:
    memory, buckets = sender
    for version in (1, 2):  # an engine, and a new one in its place after it has gone
        process, pipe = start()
        for sync in range(3):
            number = 10 * version + sync
            for index, names in enumerate(STAGES):
                tensors = [(name, values(name, number).to("cuda:0")) for name in names]
                written = buckets.write(index, tensors, PATHS[index % 2])
                assert written is not None and bool(written.handles) == (index < 2)
                gpu, read = ask(pipe, written)
                assert gpu == memory.gpu
                for name in names:
                    assert torch.equal(torch.as_tensor(read[name]), values(name, number))
        pipe.send(None)
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
