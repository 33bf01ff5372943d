"""Rotary embedding of a model: our frequencies in Megatron-Core's modules.

Megatron-Core 0.16.1 has Llama 3's scaling with fixed numbers and a YaRN of its own, whose length of
queries and keys its fused kernel for packed rows forgets in silence. `models.rope` has all kinds;
what is left to Megatron is to make angles of them and to rotate.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.rope import Rope, inverse_frequencies


def rope_arguments(architecture: Architecture) -> dict[str, Any]:
    """GPTModel's arguments for the rotary embedding, whose frequencies are to be set yet."""
    return {
        "position_embedding_type": "rope",
        "rotary_base": architecture.rope.theta,
        "rotary_percent": architecture.rope.fraction,
    }


def set_frequencies(model: GPTModel, architecture: Architecture) -> None:
    """Put the frequencies of the architecture's rotary embeddings into `model`."""
    _set(model.rotary_pos_emb, architecture.rope, architecture.head_dim)
    if architecture.window_rope is None:
        return
    config = model.config
    other = RotaryEmbedding(
        config.kv_channels,
        architecture.window_rope.fraction,
        rotary_base=architecture.window_rope.theta,
        use_cpu_initialization=config.use_cpu_initialization,
        cp_group=model.pg_collection.cp,
    )
    _set(other, architecture.window_rope, architecture.head_dim)
    model.rotary_pos_emb = TwoRotaries(model.rotary_pos_emb, other)
    for layer in model.decoder.layers:
        number = int(architecture.has_window(layer.layer_number - 1))
        chosen = partial(_choose, number)
        layer.self_attention.register_forward_pre_hook(chosen, with_kwargs=True)


def _set(rotary: RotaryEmbedding, rope: Rope, head_dim: int) -> None:
    frequencies = inverse_frequencies(rope, head_dim)
    assert frequencies.shape == rotary.inv_freq.shape, "another number of pairs rotates"
    rotary.inv_freq = frequencies.to(rotary.inv_freq.device)


class TwoRotaries(torch.nn.Module):
    """Angles of two rotary embeddings, `[2, seq, 1, 1, dim]`: of layers without and with a window.

    One tensor, since full recomputation keeps what a layer is called with; each layer's attention
    takes its own part.
    """

    def __init__(self, whole: RotaryEmbedding, window: RotaryEmbedding) -> None:
        super().__init__()
        self.whole, self.window = whole, window
        self.get_rotary_seq_len = whole.get_rotary_seq_len

    def forward(
        self,
        max_seq_len: int,
        offset: int = 0,
        packed_seq: bool = False,
        cp_group: dist.ProcessGroup | None = None,
    ) -> torch.Tensor:
        """As Megatron's; under CP `seq` is what the rank holds, but for packed rows."""
        both = (self.whole, self.window)
        return torch.stack([one(max_seq_len, offset, packed_seq, cp_group) for one in both])


def _choose(
    number: int, attention: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The layer's part of the angles."""
    return inputs, {**named, "rotary_pos_emb": named["rotary_pos_emb"][number]}


def softmax_scale(architecture: Architecture) -> float | None:
    """What scores are multiplied with; none for 1 / sqrt(head_dim).

    Where whole heads rotate, longer queries and keys are larger scores, and nothing else: the
    square of `attention_factor` here costs nothing and suits every kernel.
    """
    a = architecture
    if not _in_scores(a):
        return a.score_scale
    return float(a.rope.attention_factor**2 * (a.score_scale or a.head_dim**-0.5))


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
