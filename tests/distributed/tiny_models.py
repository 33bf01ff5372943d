"""Tiny random Hugging Face models with real rotary settings, written to folders."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

VOCAB = 515
"""Not a multiple of 128, so that every layout pads the vocabulary."""

_COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.05,
)
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "beta_fast": 3.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 16,
    "truncate": False,
}
"""Over 16 tokens pairs turn 2.5 times and less: some are kept, some in between, some slowed."""
_THETA_1E6 = {"rope_type": "default", "rope_theta": 1e6}


def config(name: str) -> transformers.PretrainedConfig:
    """The HF config of a tiny model by name."""
    if name == "qwen2":
        return transformers.Qwen2Config(
            **_COMMON, tie_word_embeddings=False, rope_parameters=_THETA_1E6
        )
    if name == "qwen2_tied":
        return transformers.Qwen2Config(
            **_COMMON, tie_word_embeddings=True, rope_parameters=_THETA_1E6
        )
    if name == "qwen3":
        # Head size 32 is not hidden / heads.
        return transformers.Qwen3Config(
            **_COMMON, head_dim=32, tie_word_embeddings=False, rope_parameters=_THETA_1E6
        )
    if name == "qwen3_five":  # layers, which no layout divides
        return transformers.Qwen3Config(
            **(_COMMON | dict(num_hidden_layers=5)),
            head_dim=32,
            tie_word_embeddings=True,
            rope_parameters=_THETA_1E6,
        )
    if name == "qwen3_yarn":
        return transformers.Qwen3Config(
            **_COMMON, head_dim=16, tie_word_embeddings=False, rope_parameters=dict(_YARN)
        )
    if name == "llama_linear":
        linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        return transformers.LlamaConfig(
            **_COMMON, head_dim=16, tie_word_embeddings=True, rope_parameters=linear
        )
    if name in ("glm4", "glm4_yarn"):
        plain = {"rope_type": "default", "rope_theta": 1e4}
        return transformers.Glm4Config(
            **(_COMMON | dict(num_hidden_layers=3)),
            head_dim=16,
            tie_word_embeddings=False,
            rope_parameters=plain if name == "glm4" else dict(_YARN),
            pad_token_id=0,
            eos_token_id=1,
        )
    if name == "gemma3_text":
        sliding = {"rope_type": "default", "rope_theta": 1e4}
        linear = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
        return transformers.Gemma3TextConfig(
            **_COMMON,
            head_dim=16,
            tie_word_embeddings=True,
            sliding_window=5,
            layer_types=[f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding")],
            query_pre_attn_scalar=24,
            rope_parameters={"sliding_attention": sliding, "full_attention": linear},
        )
    if name == "llama_tied":
        return transformers.LlamaConfig(
            **_COMMON, head_dim=16, tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE
        )
    if name == "mistral":
        return transformers.MistralConfig(
            **_COMMON, head_dim=16, tie_word_embeddings=False, sliding_window=5
        )
    if name == "qwen3_moe_1e6":  # what the published ones rotate by
        plain = config("qwen3_moe")
        plain.rope_parameters = _THETA_1E6
        return plain
    if name in ("qwen3_moe", "qwen3_moe_idle"):
        idle = name == "qwen3_moe_idle"
        return transformers.Qwen3MoeConfig(
            **_COMMON,
            head_dim=16,
            tie_word_embeddings=False,
            num_experts=8 if idle else 4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            mlp_only_layers=[0, 1] if idle else [1],
            norm_topk_prob=not idle,
        )
    raise ValueError(f"no tiny model {name!r}")


def build(name: str) -> transformers.PreTrainedModel:
    """The model in fp32 with weights large enough for logits of several units."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(name), dtype=torch.float32)
    for key, parameter in model.named_parameters():
        if key.endswith("norm.weight"):
            parameter.data.normal_(0.0 if name.startswith("gemma") else 1.0, 0.1)
        elif key.endswith("bias"):
            parameter.data.normal_(0.0, 0.5)
        else:
            parameter.data.normal_(0.0, 0.15)
    if name == "qwen3_moe_idle":
        _idle_half(model)
    return model.eval()


def _idle_half(model: torch.nn.Module) -> None:
    """Scores of experts are a, -a, b, -b, 0, 0, 0, 0: of the last four none is ever in the top 2,
    yet the softmax over all experts sees them."""
    for key, weight in model.named_parameters():
        if key.endswith("mlp.gate.weight"):
            weight.data[1], weight.data[3] = -weight[0], -weight[2]
            weight.data[4:] = 0.0


def save(name: str, folder: Path) -> transformers.PreTrainedModel:
    """Write the model to `folder` in two safetensors shards and return it."""
    model = build(name)
    model.save_pretrained(folder, max_shard_size="250KB")
    return model
