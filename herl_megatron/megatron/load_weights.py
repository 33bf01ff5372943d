"""Fill a model's weights from a Hugging Face folder, a Megatron checkpoint or the run's seed.

Without communication: every rank takes only its own parameters, one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from herl_megatron.megatron.convert.megatron_reader import MegatronFolder
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.groups import Groups
from herl_megatron.models.hf_reader import HFFolder
from herl_megatron.models.local_parameters import local_parameters
from herl_megatron.models.parameters import Parameter, parameters, shard

_ReadTensor = Callable[[str, tuple[int, ...]], torch.Tensor]
Write = Callable[[torch.nn.Parameter, torch.Tensor], object]
"""(parameter, its values on this rank in the dtype they are stored in) -> not used."""


def load_hf_weights(
    chunks: Sequence[torch.nn.Module],
    folder: str,
    architecture: Architecture,
    groups: Groups,
    *,
    write: Write = torch.Tensor.copy_,
) -> None:
    """Fill every parameter of `chunks` from the safetensors files in `folder`.

    write: where the values go, by default into the parameter (rounded to its dtype).

    Raises:
        ValueError: no safetensors there; tensors missing, unexpected or of another shape (named).
    """
    stored = HFFolder(folder)
    stored.check(architecture)

    def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return stored.read(name)

    _fill(chunks, architecture, groups, read, write)


@torch.no_grad()
def load_megatron_weights(
    chunks: Sequence[torch.nn.Module],
    folder: str,
    architecture: Architecture,
    groups: Groups,
    *,
    write: Write = torch.Tensor.copy_,
) -> None:
    """Fill every parameter of `chunks` from a Megatron checkpoint that any layout wrote.

    Of a training checkpoint the fp32 main weights are taken where there are any, so that nothing
    is lost to the rounding of the weights that the model computed with. `write` as in
    `load_hf_weights`.

    Raises:
        ValueError: no checkpoint there, or one that is damaged or of another model.
    """
    stored = MegatronFolder(folder, architecture)
    if stored.has_main_weights:
        stored = MegatronFolder(folder, architecture, main_weights=True)
    stored.check()
    described = {parameter.name: parameter for parameter in parameters(architecture)}
    for name, local in local_parameters(chunks, architecture, groups).items():
        parameter = described[name]
        axis = groups.tp if parameter.expert is None else groups.expert_tp
        write(local, stored.shard(parameter, rank=axis.rank, tp=axis.size))


def init_random_weights(
    chunks: Sequence[torch.nn.Module],
    architecture: Architecture,
    groups: Groups,
    *,
    seed: int,
    write: Write = torch.Tensor.copy_,
) -> None:
    """Draw every parameter from `seed` and its HF name, so that any layout gets the same model.

    As Hugging Face initialises: matrices from N(0, `initializer_range`), norms 1 (their weight 0
    where that is added to 1), biases 0.
    `write` as in `load_hf_weights`.
    """

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return torch.zeros(shape) if architecture.zero_centered_norms else torch.ones(shape)
        if name.endswith(".bias"):
            return torch.zeros(shape)
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator).mul_(architecture.initializer_range)

    _fill(chunks, architecture, groups, draw, write)


@torch.no_grad()
def _fill(
    chunks: Sequence[torch.nn.Module],
    architecture: Architecture,
    groups: Groups,
    read: _ReadTensor,
    write: Write,
) -> None:
    described = {parameter.name: parameter for parameter in parameters(architecture)}
    for name, local in local_parameters(chunks, architecture, groups).items():
        assert name in described, f"no Hugging Face tensor is known for parameter {name}"
        write(local, _local_part(described[name], architecture, groups, read))


def _local_part(
    parameter: Parameter, architecture: Architecture, groups: Groups, read: _ReadTensor
) -> torch.Tensor:
    axis = groups.tp if parameter.expert is None else groups.expert_tp
    names = zip(parameter.hf_names, parameter.hf_shapes, strict=True)
    tensors = [read(name, shape) for name, shape in names]
    return shard(parameter, tensors, architecture, rank=axis.rank, size=axis.size)
