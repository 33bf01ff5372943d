"""What `megatron.precision` and `megatron.fp8` mean in Megatron-Core's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from herl_megatron.config.schema import MegatronConfig

_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compute_dtype(config: MegatronConfig) -> torch.dtype:
    """Dtype of parameters and activations; bf16 keeps fp32 main weights in the optimizer."""
    return _DTYPES[config.precision]


def precision_fields(config: MegatronConfig) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig that follow from the precision."""
    dtype = compute_dtype(config)
    fields: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
    }
    if config.fp8 is not None:
        # E4M3 forward, E5M2 backward, except where blocks carry their own scale.
        per_block = config.fp8 in ("blockwise", "mxfp8")
        fields |= {"fp8": "e4m3" if per_block else "hybrid", "fp8_recipe": config.fp8}
    return fields
