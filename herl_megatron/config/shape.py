"""What the values of a model's `config.json` must be, whoever reads them next.

`transformers` checks some types and few values, and says so in the words of its own classes; a
size of 0 or of 10^19 gets as far as the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_LARGEST = 2**31 - 1
_LARGEST_NUMBER = 1e15
_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
_SIZES_OR_NULL = (
    "num_key_value_heads", "head_dim", "sliding_window", "num_experts", "num_local_experts",
    "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step",
)  # fmt: skip
_NUMBERS = ("rms_norm_eps", "initializer_range", "rope_theta")
_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "norm_topk_prob")


def size_problems(shape: Mapping[str, Any]) -> Iterator[str]:
    """Values of a `config.json` that no model can have; what it leaves out is not judged."""
    problems = [*_sizes(shape), *_numbers(shape), *_switches(shape), *_names(shape)]
    yield from problems or _ratios(shape)


def _sizes(shape: Mapping[str, Any]) -> Iterator[str]:
    for name in (*_SIZES, *_SIZES_OR_NULL):
        value = shape.get(name, 1)
        if value is None and name in _SIZES_OR_NULL:
            continue
        if name == "sliding_window" and (value == 0 or not shape.get("use_sliding_window", True)):
            continue  # without a window, whatever stands there
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            yield f"{name} is {value!r:.40}; it must be a whole number from 1 to {_LARGEST}"


def _numbers(shape: Mapping[str, Any]) -> Iterator[str]:
    for name in _NUMBERS:
        if name in shape and not (name == "rope_theta" and shape[name] is None):
            if not is_positive(shape[name]):
                yield f"{name} is {shape[name]!r:.40}; it must be a number above 0"
    for name in ("rope_scaling", "rope_parameters"):
        if (rope := shape.get(name)) is not None and not isinstance(rope, Mapping):
            yield f"{name} is {rope!r:.40}; it must be an object with rope_type, or null"


def _switches(shape: Mapping[str, Any]) -> Iterator[str]:
    for name in _SWITCHES:
        if not isinstance(shape.get(name, False), bool):
            yield f"{name} is {shape[name]!r:.40}; it must be true or false"


def _names(shape: Mapping[str, Any]) -> Iterator[str]:
    for name in ("hidden_act", "dtype", "torch_dtype"):
        if not isinstance(shape.get(name), str | None):
            yield f"{name} is {shape[name]!r:.40}; it must be a text"
    for name in ("dtype", "torch_dtype"):
        if isinstance(dtype := shape.get(name), str) and dtype not in _DTYPES:
            yield f"{name} is {dtype!r:.40}; it must be one of {', '.join(_DTYPES)}"
    kinds = shape.get("architectures")
    listed = isinstance(kinds, list) and kinds and all(isinstance(kind, str) for kind in kinds)
    if kinds is not None and not listed:
        yield (
            f"architectures is {kinds!r:.40}; it must be a list of one name, that of the model's"
            " class"
        )


def _ratios(shape: Mapping[str, Any]) -> Iterator[str]:
    """Heads share the hidden size and the key heads, where both are given."""
    heads, hidden = shape.get("num_attention_heads"), shape.get("hidden_size")
    groups = shape.get("num_key_value_heads")
    if heads and groups and heads % groups:
        yield f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
    if heads and hidden and not shape.get("head_dim") and hidden % heads:
        yield f"hidden_size {hidden} is no multiple of num_attention_heads {heads}"


def is_positive(value: object) -> bool:
    """Whether it is a number above 0 that a computation can use."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < _LARGEST_NUMBER and math.isfinite(value)
