"""Rotary embeddings: what a Hugging Face config says of one, and the frequencies that follow.

Dimension pair i of d / 2 turns by the angle `position * f_i`, with f_i = theta^(-2 i / d) (Su et
al. 2021, arXiv 2104.09864, section 3.4.2). For longer texts than those of the first training, a
kind changes the frequencies; with L = `original_positions` and r_i = L f_i / (2 pi), the turns of
pair i over L tokens:

    linear   f_i / factor                          (Chen et al. 2023, arXiv 2306.15595)
    llama3   s f_i + (1 - s) f_i / factor,         s = (r_i - low) / (high - low), within 0 and 1
             as Llama 3.1 was published
    yarn     (1 - m) f_i + m f_i / factor,         m = (i - a) / (b - a), within 0 and 1, where
             pair a turns `beta_fast` times, b `beta_slow` times (Peng et al. 2023, arXiv
             2309.00071, section 3.2); cosine and sine are multiplied by `attention_factor`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from herl_megatron.config.shape import is_positive

_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """One rotary embedding.

    fraction: of a head's dimensions the first ones rotate, so many of all.
    interleaved: neighbouring dimensions rotate together, not those that are half of them apart.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    fraction: float = 1.0
    interleaved: bool = False
    original_positions: float = 8192
    """Read for kinds `llama3` and `yarn`."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """The two are read for kind `llama3`."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """The three are read for kind `yarn`; whether a and b are rounded to whole pairs, outwards."""
    attention_factor: float = 1.0
    """Queries and keys are so many times as long after the rotation."""


def read_partial_rope(parameters: Mapping[str, Any], *, head_dim: int) -> Rope:
    """A rotary embedding over the first part of each head.

    Raises:
        ValueError: as `read_rope`, or that part is no whole number of pairs.
    """
    whole = dict(parameters)
    fraction = whole.pop("partial_rotary_factor", 1.0)
    turning = head_dim * fraction if is_positive(fraction) and fraction <= 1 else 0
    if not turning or turning % 2:
        raise ValueError(
            f"rope partial_rotary_factor is {fraction!r:.40} with head_dim {head_dim}; it must be a"
            " number up to 1 and leave an even number of dimensions to rotate"
        )
    return replace(read_rope(whole), fraction=fraction)


def read_rope(parameters: Mapping[str, Any]) -> Rope:
    """One rotary embedding over whole heads, from `rope_parameters` or one of its parts.

    Raises:
        ValueError: a kind or a number that is not supported.
    """
    kind = parameters.get("rope_type")
    fraction = parameters.get("partial_rotary_factor", 1.0)
    if fraction != 1.0:
        raise ValueError(
            f"rope partial_rotary_factor is {fraction!r:.40}; this family rotates whole heads, so"
            " it must be 1.0"
        )
    if kind not in _KINDS:
        raise ValueError(
            f"rope_type {kind!r:.40} is not supported; one of {', '.join(_KINDS)}: choose one that"
            " the model was trained with"
        )
    plain = Rope(theta=_number("rope_theta", parameters))
    if kind == "default":
        return plain
    scaled = replace(plain, kind=kind, factor=_number("factor", parameters))
    if kind == "linear":
        return scaled
    positions = _number("original_max_position_embeddings", parameters)
    scaled = replace(scaled, original_positions=positions)
    return _llama3(scaled, parameters) if kind == "llama3" else _yarn(scaled, parameters)


def _llama3(rope: Rope, parameters: Mapping[str, Any]) -> Rope:
    low, high = (_number(f"{x}_freq_factor", parameters) for x in ("low", "high"))
    if high <= low:
        raise ValueError(
            f"rope high_freq_factor is {high} and low_freq_factor {low}; the former must be larger"
        )
    return replace(rope, low_freq_factor=low, high_freq_factor=high)


def _yarn(rope: Rope, parameters: Mapping[str, Any]) -> Rope:
    if rope.theta <= 1:
        raise ValueError(f"rope_theta is {rope.theta}; rope_type yarn needs one above 1")
    given = {
        key: _number(key, parameters)
        for key in ("beta_fast", "beta_slow", "attention_factor")
        if parameters.get(key) is not None
    }
    truncate = parameters.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"rope truncate is {truncate!r:.40}; it must be true or false")
    return replace(
        rope,
        beta_fast=given.get("beta_fast", 32.0),
        beta_slow=given.get("beta_slow", 1.0),
        truncate=truncate,
        attention_factor=given.get("attention_factor") or _yarn_attention(rope.factor, parameters),
    )


def _yarn_attention(factor: float, parameters: Mapping[str, Any]) -> float:
    """0.1 ln(factor) + 1, as the paper has it (section 3.3); or the quotient of two such terms with
    weights, where both are given and not 0, as `transformers` has it."""
    keys = ("mscale", "mscale_all_dim")
    if not all(parameters.get(key) for key in keys):
        return _stretch(factor, 1.0)
    above, below = (_number(key, parameters) for key in keys)
    return _stretch(factor, above) / _stretch(factor, below)


def _stretch(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _number(key: str, parameters: Mapping[str, Any]) -> float:
    value = parameters.get(key)
    if not is_positive(value):
        name = key if key.startswith("rope_") else f"rope {key}"
        raise ValueError(f"{name} is {value!r:.40}; it must be a number above 0")
    assert isinstance(value, int | float)
    return value


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """f_i of the module's docstring, radians per token, float32 `[pairs]`."""
    dim = int(head_dim * rope.fraction)
    plain = 1.0 / rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if rope.kind == "default":
        return plain
    return torch.lerp(plain, plain / rope.factor, _slowed(rope, plain, dim))


def _slowed(rope: Rope, plain: torch.Tensor, dim: int) -> torch.Tensor:
    """How much of each pair's frequency is divided by the factor, from 0 to 1."""
    if rope.kind == "linear":
        return torch.ones_like(plain)
    if rope.kind == "llama3":
        turns = rope.original_positions * plain / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        return 1 - ((turns - low) / (high - low)).clamp(0, 1)
    first, last = (_pair_of(turns, rope, dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    return ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)


def _pair_of(turns: float, rope: Rope, dim: int) -> float:
    """The pair, or a place between two, that turns so often over the original positions."""
    length = rope.original_positions / (2 * math.pi * turns)
    return dim * math.log(length) / (2 * math.log(rope.theta))
