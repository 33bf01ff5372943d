"""From a Hugging Face config to an `Architecture`: what families read in the same way."""

from __future__ import annotations

from herl_megatron.models.architecture import Architecture, Experts
from herl_megatron.models.family import HFConfig
from herl_megatron.models.rope import Rope, read_rope


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
