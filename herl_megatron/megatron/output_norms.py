"""Norms on what attention and MLP put out, before it is added to the residual stream.

Megatron-Core's layers normalise inputs only. The norm becomes a part of the linear layer that makes
the output, so that it is saved and resharded with it, whichever spec the layer is of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from herl_megatron.models.parameters import OUTPUT_NORM


def add_output_norms(model: GPTModel, norm: Callable[..., torch.nn.Module]) -> None:
    """Give every layer of `model` its two; `norm` is made as Megatron makes norms."""
    config = model.config
    for layer in model.decoder.layers:
        for linear in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
            made = norm(config, config.hidden_size, eps=config.layernorm_epsilon)
            linear.add_module(OUTPUT_NORM, made)
            linear.register_forward_hook(_normalise)


def _normalise(
    linear: torch.nn.Module, inputs: Any, output: tuple[torch.Tensor, torch.Tensor | None]
) -> tuple[torch.Tensor, None]:
    """Of a row-parallel layer, whose output is summed over TP (and cut along the sequence)."""
    hidden, bias = output
    assert bias is None, "a bias would be added after the norm"
    return linear.get_submodule(OUTPUT_NORM)(hidden), None
