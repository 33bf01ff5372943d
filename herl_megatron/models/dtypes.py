"""The dtype that a precision of the configuration means."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from herl_megatron.config.schema import MegatronConfig

_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def compute_dtype(config: MegatronConfig) -> torch.dtype:
    """Dtype of parameters and activations; bf16 keeps fp32 main weights in the optimizer."""
    return _DTYPES[config.precision]
