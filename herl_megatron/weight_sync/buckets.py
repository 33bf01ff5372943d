"""The order and the buckets in which a model's weights travel (pure).

Computed from the architecture and the layout alone, so every rank and the driver get the same plan
without talking to each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.parameters import EMBEDDING, Parameter, parameters
from herl_megatron.models.stages import stage_of_layer


@dataclass(frozen=True)
class PlannedTensor:
    """One HF tensor: name, torch dtype name (`bfloat16`), shape and size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class BucketPlan:
    """Tensors that are gathered and sent together, all held by one pipeline stage."""

    index: int
    pp_stage: int
    parameters: tuple[Parameter, ...]
    tensors: tuple[PlannedTensor, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, without padding between them."""
        return sum(tensor.num_bytes for tensor in self.tensors)


def plan_buckets(
    architecture: Architecture, config: MegatronConfig, *, bucket_bytes: int, dtype: torch.dtype
) -> tuple[BucketPlan, ...]:
    """All weights, stage by stage, in buckets of at most `bucket_bytes`.

    The HF tensors of one Megatron parameter stay together, because they are gathered at once and
    engines fuse them again; a parameter larger than `bucket_bytes` travels alone. Tied models do
    not send `lm_head`.
    """
    sent = [parameter for parameter in parameters(architecture) if not parameter.tied_copy]
    sent.sort(key=lambda parameter: _stage(parameter, architecture, config))  # stable
    groups: list[tuple[int, list[Parameter]]] = []
    room = 0
    for parameter in sent:
        stage = _stage(parameter, architecture, config)
        size = sum(tensor.num_bytes for tensor in planned_tensors(parameter, dtype))
        if not groups or groups[-1][0] != stage or size > room:
            groups.append((stage, []))
            room = bucket_bytes
        groups[-1][1].append(parameter)
        room -= size
    return tuple(
        BucketPlan(index, stage, tuple(members), _tensors(members, dtype))
        for index, (stage, members) in enumerate(groups)
    )


def planned_tensors(parameter: Parameter, dtype: torch.dtype) -> tuple[PlannedTensor, ...]:
    """The HF tensors of one parameter in the stream's dtype."""
    name = str(dtype).removeprefix("torch.")
    return tuple(
        PlannedTensor(hf_name, name, shape, math.prod(shape) * dtype.itemsize)
        for hf_name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
    )


def _tensors(members: Sequence[Parameter], dtype: torch.dtype) -> tuple[PlannedTensor, ...]:
    return tuple(tensor for parameter in members for tensor in planned_tensors(parameter, dtype))


def _stage(parameter: Parameter, architecture: Architecture, config: MegatronConfig) -> int:
    if parameter.name == EMBEDDING:
        return 0
    if parameter.layer is None:  # final norm and output layer
        return config.pipeline_parallel - 1
    return stage_of_layer(
        parameter.layer,
        num_layers=architecture.num_layers,
        pp=config.pipeline_parallel,
        vpp=config.virtual_pipeline or 1,
    )
