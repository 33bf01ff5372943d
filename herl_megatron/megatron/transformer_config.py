"""From a model's architecture to Megatron-Core's configuration."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.megatron.precision import precision_fields
from herl_megatron.megatron.rotary import can_be_fused, lengthen_rotated_part, softmax_scale
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.stages import chunk_sizes


def transformer_config(
    architecture: Architecture, config: MegatronConfig, *, transformer_engine: bool
) -> TransformerConfig:
    """Megatron-Core's configuration for this architecture and layout.

    transformer_engine: whether the layers will be Transformer Engine's.

    Raises:
        ValueError: the architecture cannot be cut as the layout asks.
    """
    _check_divisible(architecture, config)
    a = architecture
    fields: dict[str, Any] = dict(
        num_layers=a.num_layers,
        hidden_size=a.hidden_size,
        num_attention_heads=a.num_heads,
        num_query_groups=a.num_kv_heads,
        kv_channels=a.head_dim,
        ffn_hidden_size=a.ffn_size,
        layernorm_epsilon=a.norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu if a.activation == "silu" else _gelu_tanh,
        add_bias_linear=False,
        add_qkv_bias=a.qkv_bias,
        qk_layernorm=a.qk_norm,
        rotary_interleaved=a.rope.interleaved,
        softmax_scale=softmax_scale(a),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        layernorm_zero_centered_gamma=a.zero_centered_norms,
        window_size=None if a.window is None else (a.window - 1, 0),
        window_attn_skip_freq=None if a.windowed is None else [int(w) for w in a.windowed],
    )
    fields |= precision_fields(config) | _parallel_fields(config) | _recompute_fields(config)
    fields["pipeline_model_parallel_layout"] = _pipeline_layout(a.num_layers, config)
    fields |= _expert_fields(architecture, transformer_engine=transformer_engine)
    if transformer_engine:
        fields |= _engine_fields(architecture, config)
    # Weights are read from a checkpoint or drawn per name; NaN until then shows a forgotten one.
    # Megatron's own initialisation stays on: it also marks the weights that TP cuts, without
    # which gradient norms are wrong in silence.
    fields |= {"init_method": _fill_nan, "output_layer_init_method": _fill_nan}
    made = TransformerConfig(**fields)
    lengthen_rotated_part(made, a)
    return made


def _gelu_tanh(gate: torch.Tensor) -> torch.Tensor:
    return F.gelu(gate, approximate="tanh")


def _fill_nan(weight: torch.Tensor) -> None:
    torch.nn.init.constant_(weight, float("nan"))


def _check_divisible(a: Architecture, config: MegatronConfig) -> None:
    tp = config.tensor_parallel
    sizes = {
        "num_attention_heads": (a.num_heads, "tensor_parallel", tp),
        "intermediate_size": (a.ffn_size, "tensor_parallel", tp),
    }
    if a.experts is not None:
        ep = config.expert_parallel
        sizes["num_experts"] = (a.experts.count, "expert_parallel", ep)
        sizes["moe_intermediate_size"] = (a.experts.ffn_size, "expert_tensor_parallel", config.etp)
        if tp > 1 and not config.sequence_parallel:
            raise ValueError("a model with experts and TP > 1 needs megatron.sequence_parallel")
    elif config.expert_parallel > 1 or config.expert_tensor_parallel is not None:
        raise ValueError(
            f"megatron.expert_parallel is {config.expert_parallel} but {a.family} has no experts;"
            f" use 1, and null for expert_tensor_parallel {config.expert_tensor_parallel}"
        )
    for key, (size, by, parts) in sizes.items():
        if size % parts:
            raise ValueError(f"the model's {key} {size} is not divisible by {by} {parts}")
    if a.num_kv_heads % tp and tp % a.num_kv_heads:
        raise ValueError(
            f"the model's num_key_value_heads {a.num_kv_heads} and tensor_parallel {tp}: one must"
            " divide the other"
        )


def _pipeline_layout(num_layers: int, config: MegatronConfig) -> list[list[str]] | None:
    """What each model chunk holds, in Megatron's words; none where all hold equally many layers."""
    chunks = config.pipeline_parallel * (config.virtual_pipeline or 1)
    sizes = chunk_sizes(num_layers, chunks)
    if len(set(sizes)) == 1:
        return None
    layout = [["decoder"] * size for size in sizes]
    return [["embedding", *layout[0]], *layout[1:-1], [*layout[-1], "loss"]]


def _parallel_fields(config: MegatronConfig) -> dict[str, Any]:
    interleaved = config.virtual_pipeline is not None
    return {
        "tensor_model_parallel_size": config.tensor_parallel,
        "pipeline_model_parallel_size": config.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": config.virtual_pipeline,
        "context_parallel_size": config.context_parallel,
        "expert_model_parallel_size": config.expert_parallel,
        "expert_tensor_parallel_size": config.etp,
        "sequence_parallel": config.sequence_parallel,
        # Micro-batches differ in length, so stages tell each other their shapes.
        "variable_seq_lengths": True,
        # The one that variable_seq_lengths allows, for dense models too; and what is meant for
        # more than a few EP ranks, since each token goes only where its experts are.
        "moe_token_dispatcher_type": "alltoall",
        # The interleaved schedule without overlap gives gradients off by a factor of 1e3.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        # Apex extension; never needed on CPU.
        "gradient_accumulation_fusion": False,
        # Not a kernel that either of our attentions uses, and it refuses bf16 on CPU.
        "masked_softmax_fusion": False,
    }


def _engine_fields(a: Architecture, config: MegatronConfig) -> dict[str, Any]:
    """What Transformer Engine's layers need or do better.

    Its rotary kernel takes packed rows as they are; Megatron's own code goes from row to row, and
    waits for the GPU in every layer to know where they end. Its attention passes key and value
    around the CP ranks (`p2p`), but with a window it has to exchange sequences for heads (`a2a`).
    """
    fields: dict[str, Any] = {
        "apply_rope_fusion": can_be_fused(a),
        # One kernel for gate, product and (experts) routing weight, which keeps its input alone for
        # the backward pass; without it an expert's weighted outputs would be stored in fp32.
        "bias_activation_fusion": True,
    }
    if a.activation == "gelu_tanh":
        fields["activation_func"] = F.gelu  # asks for the fused kernel, which has tanh
    if a.window is not None and config.context_parallel > 1:
        tp, cp = config.tensor_parallel, config.context_parallel
        if a.num_kv_heads % (tp * cp):
            raise ValueError(
                f"a model with a sliding window of {a.window} has num_key_value_heads"
                f" {a.num_kv_heads}, which tensor_parallel {tp} * context_parallel {cp} does not"
                " divide: Transformer Engine gives each rank whole heads then; use a smaller"
                " megatron.context_parallel"
            )
        fields["cp_comm_type"] = "a2a"
    return fields


def _recompute_fields(config: MegatronConfig) -> dict[str, Any]:
    if config.recompute == "none":
        return {}
    if config.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }


def _expert_fields(architecture: Architecture, *, transformer_engine: bool) -> dict[str, Any]:
    """Routing as Hugging Face computes it, and the kernels that a rank's experts run in.

    With Transformer Engine all experts of a rank are one grouped matrix product (`TEGroupedMLP`),
    and tokens are sorted by its fused kernels; without it experts run one after the other
    (`SequentialMLP`), since Megatron's own grouped layer needs a CUDA extension and stores a
    rank's experts in one matrix. Checkpoints of the two are the same. Under FP8 the grouped layer
    pads each expert's tokens itself, after they have come together from all ranks
    (`moe_router_padding_for_quantization` would pad before, on each rank, for every expert).
    """
    experts = architecture.experts
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.count,
        "moe_router_topk": experts.top_k,
        "moe_ffn_hidden_size": experts.ffn_size,
        # HF: softmax over all experts and, if it normalises the top k, divide by their sum; that
        # is a softmax over the top k alone.
        "moe_router_pre_softmax": not experts.normalize_top_k,
        "moe_grouped_gemm": transformer_engine,
        "moe_permute_fusion": transformer_engine,
        # No auxiliary loss, as Hugging Face trains by default (`output_router_logits` false): the
        # gradient is the policy loss's alone. Balance was learned before; a loss for it here would
        # move the routers of rows without advantage too, against the reference that the KL term
        # holds on to. `expert_load` reports what the routers do.
        "moe_router_load_balancing_type": "none",
        # Hugging Face takes the softmax in fp32 too; its scores before that are in the model's
        # dtype, here they are in fp32: near ties of many experts would be decided by rounding, and
        # otherwise than the engine decides them.
        "moe_router_dtype": "fp32",
        "moe_layer_freq": [int(has_experts) for has_experts in experts.layers],
    }
