"""What `megatron.precision` and `megatron.fp8` mean in Megatron-Core's configuration."""

from __future__ import annotations

from typing import Any

import torch

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.fp8 import RECIPES
from herl_megatron.models.dtypes import compute_dtype


def precision_fields(config: MegatronConfig) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig that follow from the precision."""
    dtype = compute_dtype(config)
    fields: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
    }
    if config.fp8 is not None:
        fields |= _fp8_fields(config, RECIPES[config.fp8].formats)
    return fields


def _fp8_fields(config: MegatronConfig, formats: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "fp8": formats,
        "fp8_recipe": config.fp8,
        "fp8_param": False,  # weights stay bf16: see config.fp8
        "fp8_wgrad": True,
        "fp8_dot_product_attention": False,
    }
    if config.fp8 == "delayed":
        # Transformer Engine's own defaults; Megatron's would be the last pass alone.
        fields |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max", "fp8_margin": 0}
    if config.fp8_bf16_layers:
        fields |= {
            "first_last_layers_bf16": True,
            "num_layers_at_start_in_bf16": config.fp8_bf16_layers,
            "num_layers_at_end_in_bf16": config.fp8_bf16_layers,
        }
    return fields
