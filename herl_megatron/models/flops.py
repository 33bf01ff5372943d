"""Parameters and floating point operations of a model, counted from its shapes.

Operations per token of a forward pass: 2 per weight that the token meets (the embedding is a
look-up) and 4 q L per earlier token for attention (Kaplan et al. 2020, arXiv 2001.08361, section
2.1).
"""

from __future__ import annotations

import math
from functools import lru_cache

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.parameters import parameters


@lru_cache(maxsize=8)  # a plan that looks for what fits asks some thousand times
def model_parameters(architecture: Architecture) -> int:
    """Parameters of the Hugging Face model; a tied output matrix counts once."""
    return sum(
        math.prod(shape)
        for parameter in parameters(architecture)
        if not parameter.tied_copy
        for shape in parameter.hf_shapes
    )


def active_parameters(architecture: Architecture) -> int:
    """Weights that one token is multiplied with, the output matrix included."""
    a = architecture
    total = model_parameters(a)
    if not a.tied:
        total -= a.vocab_size * a.hidden_size
    if a.experts is None:
        return total
    idle = (a.experts.count - a.experts.top_k) * 3 * a.hidden_size * a.experts.ffn_size
    return total - idle * sum(a.experts.layers)


def forward_flops_per_token(architecture: Architecture, row_tokens: float) -> float:
    """Of a token in a causal row of `row_tokens`, which sees half of them on average."""
    attention = 4 * architecture.num_heads * architecture.head_dim * architecture.num_layers
    return 2 * active_parameters(architecture) + attention * row_tokens / 2
