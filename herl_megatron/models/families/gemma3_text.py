"""Gemma 3, text only: most layers have a window and a rotary embedding of their own; norms, which
multiply by 1 + their weight, on the inputs and outputs of attention and MLP and on queries and
keys; GELU; scaled embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from herl_megatron.config.shape import is_positive
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.family import (
    NO_BIAS,
    NO_DROPOUT,
    NO_QUANTIZATION,
    WHOLE_HEADS_ROTATE,
    Family,
    HFConfig,
    LayerNames,
)
from herl_megatron.models.plain_decoder import decoder
from herl_megatron.models.rope import Rope, read_rope

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _read(config: HFConfig) -> Architecture:
    windowed = _windowed(config)
    ropes = {kind: _rope(config, kind) for kind in (_FULL, _SLIDING)}
    scalar = config["query_pre_attn_scalar"]
    if not is_positive(scalar):
        raise ValueError(f"query_pre_attn_scalar is {scalar!r:.40}; it must be a number above 0")
    return replace(
        decoder(config, rope=ropes[_FULL]),
        qk_norm=True,
        window=config["sliding_window"] if any(windowed) else None,
        windowed=windowed,
        window_rope=ropes[_SLIDING],
        output_norms=True,
        zero_centered_norms=True,
        activation="gelu_tanh",
        score_scale=scalar**-0.5,
        scaled_embedding=True,
    )


def _windowed(config: HFConfig) -> tuple[bool, ...]:
    kinds, layers = config["layer_types"], config["num_hidden_layers"]
    if len(kinds) != layers or not set(kinds) <= {_FULL, _SLIDING}:
        raise ValueError(
            f"layer_types has {len(kinds)} entries, {sorted(set(kinds))}; it must have"
            f" {layers}, of {_FULL} and {_SLIDING}"
        )
    if _SLIDING in kinds and not config["sliding_window"]:
        raise ValueError(
            f"layer_types has {_SLIDING} but sliding_window is {config['sliding_window']}; give"
            " the tokens that such a layer sees"
        )
    return tuple(kind == _SLIDING for kind in kinds)


def _rope(config: HFConfig, kind: str) -> Rope:
    parameters = config["rope_parameters"].get(kind)
    if not isinstance(parameters, Mapping):
        raise ValueError(f"rope_parameters has no object {kind}; add it, with a rope_type")
    rope = read_rope(parameters)
    if rope.attention_factor != 1:
        raise ValueError(
            f"rope_parameters {kind} has rope_type {rope.kind!r}, which makes scores larger in some"
            " layers only; default, linear and llama3 are supported here"
        )
    return rope


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _read,
    allowed={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (False, None),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        **NO_BIAS,
        **NO_DROPOUT,
        **WHOLE_HEADS_ROTATE,
        **NO_QUANTIZATION,
    },
    names=LayerNames(
        attention_output_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_output_norm="post_feedforward_layernorm",
    ),
)
