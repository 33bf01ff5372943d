"""The parameters that this rank holds, by their global Megatron names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.groups import Groups
from herl_megatron.models.parameters import canonical_name


def local_parameters(
    chunks: Sequence[torch.nn.Module], architecture: Architecture, groups: Groups
) -> dict[str, torch.nn.Parameter]:
    """Global name -> parameter of all chunks; wrappers (DDP) are looked through.

    Megatron numbers layers and experts from 0 on every rank; here they have the numbers of the
    whole model, as in `models.parameters.parameters`.
    """
    first_expert = 0
    if architecture.experts is not None:
        first_expert = groups.ep.rank * (architecture.experts.count // groups.ep.size)
    found: dict[str, torch.nn.Parameter] = {}
    for wrapped in chunks:
        chunk = unwrap(wrapped)
        for name, parameter in chunk.named_parameters():
            found[_global_name(name, chunk, first_expert)] = parameter
    return found


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """The GPTModel inside DDP-like wrappers, which keep it in `.module`."""
    while "module" in dict(module.named_children()):
        module = module.get_submodule("module")
    return module


def _global_name(name: str, chunk: torch.nn.Module, first_expert: int) -> str:
    name = canonical_name(name)
    layer = re.match(r"decoder\.layers\.(\d+)\.", name)
    if layer:
        # layer_number counts from 1 over the whole model.
        number = chunk.get_submodule(f"decoder.layers.{layer[1]}").layer_number
        assert isinstance(number, int), f"layer {layer[1]} has no number"
        name = f"decoder.layers.{number - 1}.{name[layer.end() :]}"
    return re.sub(
        r"\.experts\.(\d+)\.", lambda match: f".experts.{int(match[1]) + first_expert}.", name
    )
