"""What a model family is described by: one `Family` in one file of `models.families`.

The description is data and one reading of the Hugging Face config; whatever is computed from it
(parameters, layouts, Megatron-Core's layers, conversion, memory) is shared and asks no family's
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from herl_megatron.models.architecture import Architecture

HFConfig = Mapping[str, Any]
"""A complete `config.json`: defaults filled in, rotary embedding in `rope_parameters`."""
Allowed = Mapping[str, tuple[Any, ...]]
"""HF fields that may be absent but, when present, must have one of these values."""

NO_QUANTIZATION: Allowed = {"quantization_config": (None,)}
NO_BIAS: Allowed = {"mlp_bias": (False,), "attention_bias": (False,)}
SILU: Allowed = {"hidden_act": ("silu",)}
NO_DROPOUT: Allowed = {"attention_dropout": (0, 0.0)}
WHOLE_HEADS_ROTATE: Allowed = {"partial_rotary_factor": (1.0, 1)}
PLAIN: Allowed = {**SILU, **NO_BIAS, **NO_DROPOUT, **WHOLE_HEADS_ROTATE, **NO_QUANTIZATION}
"""What most families ask for."""


@dataclass(frozen=True)
class LayerNames:
    """HF names of a layer's parts, below `model.layers.N.`, without `.weight` or `.bias`."""

    attention_norm: str = "input_layernorm"
    """On the input of attention."""
    qkv: tuple[str, str, str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qk_norms: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    attention_output: str = "self_attn.o_proj"
    attention_output_norm: str = ""
    """Where the architecture has `output_norms`; as `mlp_output_norm`."""
    mlp_norm: str = "post_attention_layernorm"
    """On the input of the MLP."""
    mlp: str = "mlp"
    experts: str = "mlp.experts"
    router: str = "mlp.gate"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    """Below the MLP or an expert: two tensors, or one that has the gate above."""
    down: str = "down_proj"
    mlp_output_norm: str = ""


@dataclass(frozen=True)
class Family:
    """A `model_type`.

    language_model: the class of `transformers` that has the output layer, as in `architectures`.
    read: HF config -> architecture; raises ValueError for what cannot be expressed. Sizes and the
        fields in `allowed` have been checked before.
    """

    model_type: str
    language_model: str
    read: Callable[[HFConfig], Architecture]
    allowed: Allowed = field(default_factory=lambda: PLAIN)
    names: LayerNames = LayerNames()
