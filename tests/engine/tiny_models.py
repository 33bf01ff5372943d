"""Tiny random Hugging Face models and their requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from herl_megatron.types import GenerateRequest, SamplingSettings

VOCAB = 250  # not a multiple of 64: vLLM pads the embedding
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 256,
    "truncate": False,
}
_GEMMA3: dict[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 48,
    "sliding_window": 70,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    },
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def make_model(
    folder: Path,
    *,
    family: str = "qwen2",
    tied: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Save a random model whose next-token distributions are far from uniform; returns it."""
    yarn: dict[str, Any] = {"head_dim": 32, "rope_parameters": dict(_YARN)}
    config_class, model_class, extra = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM, _GEMMA3),
        "glm4": (Glm4Config, Glm4ForCausalLM, {"head_dim": 32}),
        "glm4_yarn": (Glm4Config, Glm4ForCausalLM, yarn),
        "qwen3_yarn": (Qwen3Config, Qwen3ForCausalLM, yarn),
        "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"head_dim": 32, **_MOE}),
    }[family]
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **extra,
    )
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim > 1:
                parameter.mul_(5.0)
    model.to(dtype).eval().save_pretrained(folder)
    return model


def make_requests(
    count: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = -1,
    max_tokens: int = 24,
    prefix: str = "r",
    shared_prompt_tokens: int = 0,
) -> list[GenerateRequest]:
    """Requests with random prompts of 4 to 60 tokens after a shared beginning."""
    draw = np.random.default_rng(7)
    shared = draw.integers(3, VOCAB, size=shared_prompt_tokens)
    settings = SamplingSettings(
        temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens
    )
    prompts = [draw.integers(3, VOCAB, size=draw.integers(4, 61)) for _ in range(count)]
    return [
        GenerateRequest(
            request_id=f"{prefix}{index}",
            prompt_token_ids=np.concatenate([shared, prompt]).astype(np.int32),
            sampling=settings,
            seed=1000 + index,
        )
        for index, prompt in enumerate(prompts)
    ]


@torch.no_grad()
def hf_logits(model: PreTrainedModel, prompt: np.ndarray, response: np.ndarray) -> torch.Tensor:
    """Logits of every response position under the HF model, `[response, vocab]` float32."""
    tokens = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logits: torch.Tensor = model(tokens).logits[0, len(prompt) - 1 : -1]
    return logits.float()


def picked(log_probs: torch.Tensor, tokens: np.ndarray) -> np.ndarray:
    """`log_probs[t, tokens[t]]`."""
    index = torch.from_numpy(tokens.astype(np.int64))[:, None]
    return log_probs.gather(1, index)[:, 0].numpy()
