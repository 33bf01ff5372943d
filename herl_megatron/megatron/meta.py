"""Bytes that a trainer rank will hold, from the real model and optimizer built without memory.

Megatron-Core's own GPTModel, DistributedDataParallel and optimizer are built on torch's meta device
by a process that joins a world of any size through PyTorch's fake process group, which never
communicates. Nothing is re-derived, so paddings, tied copies and the shards of the distributed
optimizer come out as in a run. The layer spec is the one without Transformer Engine on every
machine: it has the same parameters under other names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from herl_megatron.config.schema import MegatronConfig, OptimizerConfig
from herl_megatron.device import Device, has_cuda
from herl_megatron.megatron import cpu
from herl_megatron.megatron.model import build_model
from herl_megatron.megatron.optimizer import Optimizer
from herl_megatron.megatron.parallel import arrange_ranks, shutdown_parallel
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.groups import Groups

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.tensor, torch.arange)
_MOMENTS = 2  # Adam's, of the dtype and size of the main weights


@dataclass(frozen=True)
class RankBytes:
    """What one rank holds from its start to its end.

    parameters, expert_parameters: elements of this rank's shard; the former counts all of them.
    weight_bytes: parameters in the compute dtype, with the padding of the buffer they lie in.
    gradient_bytes: fp32 gradient buffers.
    main_weight_bytes: fp32 main weights, 0 where the parameters are fp32 themselves.
    moment_bytes: Adam's two moments (made at the first optimizer step).
    """

    rank: int
    pp_rank: int
    parameters: int
    expert_parameters: int
    weight_bytes: int
    gradient_bytes: int
    main_weight_bytes: int
    moment_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.gradient_bytes + self.main_weight_bytes + self.moment_bytes


def rank_bytes(
    architecture: Architecture, config: MegatronConfig, ranks: Sequence[int]
) -> tuple[RankBytes, ...]:
    """Build these ranks one after the other and count.

    A process that has started Megatron-Core's groups cannot call this. On a machine with GPUs a
    child process that sees none does the work.

    Raises:
        ValueError: the architecture cannot be cut as the layout asks.
    """
    if not has_cuda():
        return tuple(_build(architecture, config, rank) for rank in ranks)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_hide_gpus) as pool:
        return pool.submit(rank_bytes, architecture, config, tuple(ranks)).result()


def stage_ranks(config: MegatronConfig) -> tuple[int, ...]:
    """The first rank of each pipeline stage.

    All ranks of a stage hold parameters of the same shapes: TP and EP cut evenly, DP replicates.
    Their optimizer shards differ by padding only, and the first rank's has the least of it.
    """
    return tuple(range(0, config.world_size, config.world_size // config.pipeline_parallel))


def _hide_gpus() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class _MetaDevice(Device):
    """A CPU, for every decision, whose tensors take no memory."""

    @property
    def torch(self) -> torch.device:
        return torch.device("meta")


class _OnMeta(TorchFunctionMode):
    """New tensors go to the meta device, whatever device the caller names."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _FACTORIES:
            named["device"] = torch.device("meta")
        return func(*args, **named)


@contextmanager
def _simulated_world(config: MegatronConfig, rank: int) -> Iterator[Groups]:
    """This process as `rank` of the layout's world, alone."""
    cpu.install()
    new_group = dist.new_group

    def fake_group(*args: Any, **kwargs: Any) -> Any:
        return new_group(*args, **{**kwargs, "backend": "fake"})  # for Megatron's own gloo groups

    def everyone_says(gathered: list[Any], mine: Any, group: Any = None) -> None:
        gathered[:] = [mine] * len(gathered)

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=config.world_size)
    try:
        with (
            patch.object(dist, "new_group", fake_group),
            patch.object(dist, "all_gather_object", everyone_says),
        ):
            yield arrange_ranks(config, device=_MetaDevice("cpu"), seed=0)
    finally:
        shutdown_parallel()


def _build(architecture: Architecture, config: MegatronConfig, rank: int) -> RankBytes:
    plain = config.model_copy(update={"fp8": None})  # FP8 keeps the same parameters
    with _simulated_world(plain, rank) as groups, _OnMeta():
        chunks = build_model(architecture, plain, groups)
        optimizer = Optimizer(chunks, config=OptimizerConfig(), megatron=plain, total_steps=1)
        return _count(chunks, optimizer, groups)


def _count(chunks: Sequence[GPTModel], optimizer: Optimizer, groups: Groups) -> RankBytes:
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    assert all(parameter.is_meta for parameter in parameters), "a parameter took real memory"
    buffers = [
        buffer
        for chunk in optimizer.chunks
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
    ]
    in_buffers = sum(b.param_data.nbytes for b in buffers if b.param_data is not None)
    own = sum(p.nbytes for p in parameters) if not in_buffers else 0
    updated = [
        parameter
        for one in optimizer.megatron.chained_optimizers
        for group in one.optimizer.param_groups
        for parameter in group["params"]
    ]
    updated_bytes = sum(parameter.nbytes for parameter in updated)
    half = parameters[0].dtype is not torch.float32
    return RankBytes(
        rank=groups.rank,
        pp_rank=groups.pp.rank,
        parameters=sum(p.numel() for p in parameters),
        # Megatron's own mark, which a dense parameter may lack.
        expert_parameters=sum(p.numel() for p in parameters if not getattr(p, "allreduce", True)),
        weight_bytes=in_buffers + own,
        gradient_bytes=sum(buffer.grad_data.nbytes for buffer in buffers),
        main_weight_bytes=updated_bytes if half else 0,
        moment_bytes=_MOMENTS * updated_bytes,
    )
