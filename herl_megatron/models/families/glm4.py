"""GLM-4 (0414): half of each head rotates, in neighbouring pairs; norms on what attention and MLP
put out; gate and up projection in one tensor; biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.family import (
    NO_DROPOUT,
    NO_QUANTIZATION,
    SILU,
    Family,
    HFConfig,
    LayerNames,
)
from herl_megatron.models.plain_decoder import decoder
from herl_megatron.models.rope import read_partial_rope


def _read(config: HFConfig) -> Architecture:
    rope = read_partial_rope(config["rope_parameters"], head_dim=config["head_dim"])
    return replace(
        decoder(config, rope=replace(rope, interleaved=True)),
        qkv_bias=config["attention_bias"],
        output_norms=True,
    )


FAMILY = Family(
    "glm4",
    "Glm4ForCausalLM",
    _read,
    allowed={**SILU, **NO_DROPOUT, **NO_QUANTIZATION},
    names=LayerNames(
        attention_output_norm="post_self_attn_layernorm",
        gate_up=("gate_up_proj",),
        mlp_output_norm="post_mlp_layernorm",
    ),
)
