"""Memory of a vLLM engine: weights, KV cache and how many sequences fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from herl_megatron.config.longest import longest_tokens
from herl_megatron.config.schema import Config
from herl_megatron.gpus import Gpu
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.flops import model_parameters
from herl_megatron.models.parameters import parameters
from herl_megatron.plan.machines import GIB, Assumptions

_BYTES = {"fp32": 4, "bf16": 2}
_NEVER_QUANTIZED = ("embed_tokens", "lm_head", "mlp.gate.")  # the last is a router
_LEAST_BATCHED_TOKENS = 8192  # prompt tokens of one engine step, as `vllm_engine` asks for


@dataclass(frozen=True)
class EnginePlan:
    """One GPU of an engine; all sizes in bytes but the counts.

    budget: what vLLM may take; kv_cache: what is left of it, negative if the weights do not fit.
    sequences: of the longest kind that fit at once; mean_sequences: of the mean length.
    """

    budget_bytes: int
    weight_bytes: int
    working_bytes: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    longest_tokens: int
    sequences: int
    mean_sequences: int


@lru_cache(maxsize=8)
def _fp8_bytes(architecture: Architecture, each: int) -> int:
    """In FP8 the layers' matrices take a byte each, all else `each`."""
    total = 0
    for parameter in parameters(architecture):
        if parameter.tied_copy:
            continue
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
            wide = len(shape) < 2 or any(part in name for part in _NEVER_QUANTIZED)
            total += math.prod(shape) * (each if wide else 1)
    return total


def weight_bytes(architecture: Architecture, config: Config) -> int:
    """Weights of one engine on all its GPUs: in FP8 the layers' matrices take a byte each; the
    embedding, the output matrix and vectors stay as they are (small routers are taken to)."""
    each = _BYTES[config.rollout.dtype]
    if config.rollout.quantization is None:
        return model_parameters(architecture) * each
    return _fp8_bytes(architecture, each)


def kv_bytes_per_token(architecture: Architecture, config: Config) -> int:
    """Keys and values of one token on one GPU: TP beyond the key heads repeats them."""
    heads = max(1, architecture.num_kv_heads // config.rollout.tensor_parallel)
    each = _BYTES[config.rollout.dtype]
    return 2 * architecture.num_layers * heads * architecture.head_dim * each


def mean_tokens(config: Config, assumed: Assumptions) -> float:
    """Tokens of a mean first sample, prompt included."""
    return (
        assumed.mean_prompt * config.data.max_prompt_tokens
        + assumed.mean_response * config.rollout.max_response_tokens
    )


def plan_engine(
    architecture: Architecture, config: Config, *, gpu: Gpu | None, assumed: Assumptions
) -> EnginePlan:
    """What one GPU of an engine holds; without a GPU, the KV cache is the configured one."""
    rollout = config.rollout
    weights = weight_bytes(architecture, config) // rollout.tensor_parallel
    working = _working_bytes(architecture, config)
    if gpu is None:
        kv_cache = rollout.kv_cache_bytes
        budget = weights + working + kv_cache
    else:
        budget = int(gpu.memory_bytes * rollout.gpu_memory_utilization)
        kv_cache = budget - weights - working - int(assumed.engine_reserve_gib * GIB)
    per_token = kv_bytes_per_token(architecture, config)
    longest = longest_tokens(config)
    room = max(0, kv_cache) // per_token
    return EnginePlan(
        budget_bytes=budget,
        weight_bytes=weights,
        working_bytes=working,
        kv_cache_bytes=kv_cache,
        kv_bytes_per_token=per_token,
        longest_tokens=longest,
        sequences=min(rollout.max_num_seqs, room // longest),
        mean_sequences=min(rollout.max_num_seqs, int(room / mean_tokens(config, assumed))),
    )


def _working_bytes(architecture: Architecture, config: Config) -> int:
    """vLLM's profiling run: one layer over a full batch of prompt tokens, or the sampler's float32
    logits (two copies) of all sequences, whichever is more."""
    rollout, a = config.rollout, architecture
    each, tp = _BYTES[rollout.dtype], rollout.tensor_parallel
    tokens = max(longest_tokens(config) + 1, _LEAST_BATCHED_TOKENS)
    widest = 3 * a.ffn_size if a.experts is None else 3 * a.experts.ffn_size * a.experts.top_k
    layer = tokens * each * (3 * a.hidden_size + widest // tp)
    return max(layer, 2 * 4 * rollout.max_num_seqs * a.vocab_size)
