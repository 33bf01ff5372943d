"""From a Hugging Face config to an `Architecture`: what families read in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from herl_megatron.config.shape import is_positive
from herl_megatron.models.architecture import Architecture, Experts, Rope
from herl_megatron.models.family import HFConfig

_LLAMA3_FIXED = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Megatron-Core 0.16.1 hard-codes these three; only `factor` can be set."""


def decoder(config: HFConfig, *, rope: Rope | None = None) -> Architecture:
    """The plain decoder that a family's file starts from: pre-norms, grouped-query attention,
    gated MLP, no biases, every token sees all before it. `rope`: none reads one over whole heads.

    Raises:
        ValueError: a rotary embedding that Megatron-Core cannot express.
    """
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config["head_dim"] if "head_dim" in config else None
    return Architecture(
        family=config["model_type"],
        num_layers=config["num_hidden_layers"],
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=config["num_key_value_heads"],
        head_dim=head_dim or hidden // heads,
        ffn_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        initializer_range=config["initializer_range"],
        tied=config["tie_word_embeddings"],
        qkv_bias=False,
        qk_norm=False,
        rope=rope or read_rope(config["rope_parameters"]),
    )


def partial_rope(config: HFConfig) -> Rope:
    """A rotary embedding over the first part of each head.

    Raises:
        ValueError: as `read_rope`, or that part is no whole number of pairs.
    """
    rope = dict(config["rope_parameters"])
    fraction = rope.pop("partial_rotary_factor", 1.0)
    head_dim = config["head_dim"]
    turning = head_dim * fraction if is_positive(fraction) and fraction <= 1 else 0
    if not turning or turning % 2:
        raise ValueError(
            f"rope partial_rotary_factor is {fraction!r:.40} with head_dim {head_dim!r:.40}; it"
            " must be a number up to 1 and leave an even number of dimensions to rotate"
        )
    return replace(read_rope(rope), fraction=fraction)


def read_rope(rope: Mapping[str, Any]) -> Rope:
    """One rotary embedding over whole heads, from `rope_parameters` or one of its parts.

    Raises:
        ValueError: a kind or a number that is not supported.
    """
    kind = rope.get("rope_type")
    _require("partial_rotary_factor", rope, 1.0)
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope_type {kind!r} is not supported; default, linear or llama3")
    for key in ("rope_theta",) if kind == "default" else ("rope_theta", "factor"):
        if not is_positive(rope.get(key)):
            raise ValueError(f"rope {key} is {rope.get(key)!r:.40}; it must be a number above 0")
    if kind == "default":
        return Rope(theta=rope["rope_theta"])
    if kind == "llama3":
        for key, value in _LLAMA3_FIXED.items():
            _require(key, rope, value)
    return Rope(theta=rope["rope_theta"], kind=kind, factor=rope["factor"])


def _require(key: str, values: Mapping[str, Any], only: float) -> None:
    if key in values and values[key] != only:
        raise ValueError(f"rope {key} is {values[key]}; Megatron-Core supports only {only}")


def window_of_all_layers(config: HFConfig) -> int | None:
    """The sliding window where there is one, which all layers must have.

    Raises:
        ValueError: layers with and without it.
    """
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        return None
    window = config["sliding_window"] if "sliding_window" in config else None
    kinds = set(config["layer_types"] or ()) if "layer_types" in config else set()
    if window and kinds - {"sliding_attention"}:
        raise ValueError(
            f"layer_types mixes {sorted(kinds)}; layers must be all sliding_attention or all full"
        )
    return window or None


def read_experts(config: HFConfig) -> Experts:
    """Experts in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`."""
    key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    dense, step = set(config["mlp_only_layers"] or ()), config["decoder_sparse_step"]
    return Experts(
        count=config[key],
        top_k=config["num_experts_per_tok"],
        ffn_size=config["moe_intermediate_size"],
        normalize_top_k=config["norm_topk_prob"],
        layers=tuple(
            i not in dense and (i + 1) % step == 0 for i in range(config["num_hidden_layers"])
        ),
    )
