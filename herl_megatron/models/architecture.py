"""The shape of a model and what its layers compute, whatever family it is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herl_megatron.models.rope import Rope


@dataclass(frozen=True)
class Experts:
    """Mixture of experts; `layers[i]` says whether layer i has experts or a dense MLP."""

    count: int
    top_k: int
    ffn_size: int
    normalize_top_k: bool
    layers: tuple[bool, ...]


@dataclass(frozen=True)
class Architecture:
    """The shape of a model, read from its HF config and checked to be expressible.

    family: the `model_type`, by which the names of its Hugging Face tensors are looked up and by
        which messages call it; nothing is computed otherwise because of it.
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    initializer_range: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    rope: Rope
    window: int | None = None
    """Tokens a token attends to, itself included; none for all."""
    windowed: tuple[bool, ...] | None = None
    """Which layers have the window; none where all have it."""
    window_rope: Rope | None = None
    """Rotary embedding of the layers with the window; none where it is `rope`."""
    experts: Experts | None = None
    output_norms: bool = False
    """Whether the outputs of attention and MLP are normalised before they are added."""
    zero_centered_norms: bool = False
    """Whether a norm multiplies by 1 + its weight, in fp32."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Of the gate; the latter with the tanh approximation."""
    score_scale: float | None = None
    """What the products of queries and keys are multiplied with; none for 1 / sqrt(head_dim)."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied by sqrt(hidden_size), rounded to the compute dtype."""

    def has_window(self, layer: int) -> bool:
        """Whether layer `layer` attends within the window."""
        return self.window is not None and (self.windowed is None or self.windowed[layer])
