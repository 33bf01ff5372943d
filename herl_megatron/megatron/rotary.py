"""Rotary embedding of a model: our frequencies in Megatron-Core's modules.

Megatron-Core 0.16.1 has Llama 3's scaling with fixed numbers and a YaRN of its own, whose length of
queries and keys its fused kernel for packed rows forgets in silence. `models.rope` has all kinds;
what is left to Megatron is to make angles of them and to rotate.
"""

from __future__ import annotations

import math
from typing import Any

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.rope import inverse_frequencies


def rope_arguments(architecture: Architecture) -> dict[str, Any]:
    """GPTModel's arguments for the rotary embedding, whose frequencies are to be set yet."""
    return {
        "position_embedding_type": "rope",
        "rotary_base": architecture.rope.theta,
        "rotary_percent": architecture.rope.fraction,
    }


def set_frequencies(model: GPTModel, architecture: Architecture) -> None:
    """Put the frequencies of the architecture's rotary embedding into `model`."""
    rotary = model.rotary_pos_emb
    frequencies = inverse_frequencies(architecture.rope, architecture.head_dim)
    assert frequencies.shape == rotary.inv_freq.shape, "another number of pairs rotates"
    rotary.inv_freq = frequencies.to(rotary.inv_freq.device)


def softmax_scale(architecture: Architecture) -> float | None:
    """What scores are multiplied with; none for 1 / sqrt(head_dim).

    Where whole heads rotate, longer queries and keys are larger scores, and nothing else: the
    square of `attention_factor` here costs nothing and suits every kernel.
    """
    a = architecture
    if not _in_scores(a):
        return None
    return float(a.rope.attention_factor**2 / math.sqrt(a.head_dim))


def lengthen_rotated_part(config: TransformerConfig, architecture: Architecture) -> None:
    """Where only a part of each head rotates, `attention_factor` is that part's alone: Megatron's
    attention multiplies cosine and sine by it, as it reads from the configuration of its YaRN."""
    factor = architecture.rope.attention_factor
    if factor == 1 or _in_scores(architecture):
        return
    # Its formula is 0.1 * mscale * ln(scaling factor) + 1, over the same with mscale_all_dim.
    config.yarn_rotary_scaling_factor = math.exp(10)
    config.yarn_mscale = factor - 1
    config.yarn_mscale_all_dim = 0.0


def can_be_fused(architecture: Architecture) -> bool:
    """Whether Transformer Engine's kernel rotates it: that knows neither neighbouring pairs in
    packed rows nor a length (Megatron-Core 0.16.1 does not tell it)."""
    rope = architecture.rope
    return not rope.interleaved and (rope.attention_factor == 1 or _in_scores(architecture))


def _in_scores(architecture: Architecture) -> bool:
    rope = architecture.rope
    return rope.attention_factor != 1 and rope.fraction == 1
