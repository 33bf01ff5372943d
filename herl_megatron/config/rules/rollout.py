"""Rules of section `rollout`: the engines, what they may be asked for, and the model's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from herl_megatron.config.longest import longest_sequences, longest_tokens
from herl_megatron.config.loop_keys import samples
from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.rollout_function import rollout_function
from herl_megatron.config.rules.data import split_problems
from herl_megatron.config.schema import Config

_BYTES = {"fp32": 4, "bf16": 2}
_VOCAB_BLOCK = 64  # vLLM's
_CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    if samples(config, purpose=purpose):
        yield from _engines(config)
        yield from _function(config, purpose)
    if purpose == "train":
        yield from _temperature(config)
        yield from _partial(config)


def _function(config: Config, purpose: Purpose) -> Iterator[str]:
    try:
        rollout_function(config.rollout)
    except ValueError as error:
        yield str(error)
    if purpose == "improve" and config.rollout.function:
        yield (
            f"rollout.function is {config.rollout.function!r}, but `herl improve` revises answers"
            " of one turn; set rollout.function=''"
        )


def _engines(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.quantization and rollout.dtype != "bf16":
        yield (
            f"rollout.quantization is {rollout.quantization!r} with rollout.dtype"
            f" {rollout.dtype!r}; what FP8 leaves out computes in bf16: set dtype to bf16"
        )
    if rollout.max_engine_restarts and rollout.stall_timeout_s >= rollout.timeout_s:
        yield (
            f"rollout.stall_timeout_s is {rollout.stall_timeout_s:g}, not below rollout.timeout_s"
            f" {rollout.timeout_s:g}: a hung engine would end the run before it is started anew;"
            " lower it, or set max_engine_restarts to 0"
        )


def _temperature(config: Config) -> Iterator[str]:
    if config.train.steps != 0 and config.rollout.temperature == 0:
        yield (
            "rollout.temperature is 0, so all rollouts of a group are equal, the policy that is"
            " trained (logits divided by the temperature) has no log-probs, and nothing is"
            " learned; use 1.0"
        )


def _partial(config: Config) -> Iterator[str]:
    if config.rollout.mode == "partial" and not config.rollout.streamed:
        yield (
            "rollout.mode is 'partial' with rollout.streamed false: behind barriers no group is"
            " complete before all are; set streamed to true"
        )
    if config.rollout.mode == "partial" and config.rollout.function:
        yield (
            f"rollout.mode is 'partial' with rollout.function {config.rollout.function!r}: a"
            " conversation cannot be cut and go on under other weights; use mode 'sync' or"
            " 'one_step_off'"
        )


def shape_problems(
    config: Config, shape: Mapping[str, Any], *, purpose: Purpose, device: Literal["cpu", "cuda"]
) -> Iterator[str]:
    """Between the engines and a model's `config.json`."""
    if not samples(config, purpose=purpose):
        return
    yield from _engine_split(config, shape)
    yield from _lengths(config, shape)
    if device == "cpu":
        yield from _head_dim(shape)
        yield from _kv_cache(config, shape)


def _engine_split(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """vLLM cuts experts as it cuts all else, and pads the vocabulary to whole blocks."""
    padded = -(-shape.get("vocab_size", 0) // _VOCAB_BLOCK) * _VOCAB_BLOCK
    sizes = {**shape, "vocab_size (padded)": padded}
    names = ("num_attention_heads", "intermediate_size", "moe_intermediate_size")
    key, tp = "rollout.tensor_parallel", config.rollout.tensor_parallel
    yield from split_problems(key, tp, sizes, (*names, "vocab_size (padded)"))


def _lengths(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """The engine is started for the longest prompt plus the longest response."""
    positions = shape.get("max_position_embeddings")
    for key, prompt, its_key, response in longest_sequences(config):
        if positions and prompt + response > positions:
            yield (
                f"{key} {prompt} + {its_key} {response} ="
                f" {prompt + response} tokens, but the model's max_position_embeddings is"
                f" {positions}; lower one of them"
            )


def _head_dim(shape: Mapping[str, Any]) -> Iterator[str]:
    """vLLM's CPU attention has kernels for some sizes only."""
    heads, size = shape.get("num_attention_heads"), shape.get("hidden_size")
    head_dim = shape.get("head_dim") or (size // heads if heads and size else None)
    if head_dim and head_dim not in _CPU_HEAD_DIMS:
        yield (
            f"model.path: the head dimension is {head_dim}, but vLLM's CPU build supports"
            f" {', '.join(map(str, _CPU_HEAD_DIMS))}; sample on a GPU or use another model"
        )


def _kv_cache(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """Keys and values of one longest sequence: 2 * layers * kv_heads * head_dim per token, the
    heads being those of one process."""
    rollout = config.rollout
    heads, size = shape.get("num_attention_heads"), shape.get("hidden_size")
    layers = shape.get("num_hidden_layers")
    if not (heads and size and layers):
        return
    head_dim = shape.get("head_dim") or size // heads
    kv_heads = max(1, (shape.get("num_key_value_heads") or heads) // rollout.tensor_parallel)
    longest = longest_tokens(config)
    need = 2 * layers * kv_heads * head_dim * _BYTES[rollout.dtype] * longest
    if need > rollout.kv_cache_bytes:
        yield (
            f"rollout.kv_cache_bytes is {rollout.kv_cache_bytes}, but one sequence of {longest}"
            f" tokens needs {need}; raise it or lower the token limits"
        )
