"""What a Hugging Face model is made of, and how its tensors make up Megatron-Core's.

Pure: torch, but neither Megatron nor a model. A family is one row of `FAMILIES`. `parameters`
lists every Megatron parameter in stream order with the HF tensors that it is made of; `shard`
makes one TP rank's part from HF tensors, `unfuse` goes back from all parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from herl_megatron.config.shape import is_positive, size_problems

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
VOCAB_MULTIPLE = 128
"""Vocabulary rows per TP rank are a multiple of this (tensor-core friendly, as in Megatron)."""


@dataclass(frozen=True)
class Family:
    """How a `model_type` differs from Llama."""

    qkv_bias: bool = False
    qk_norm: bool = False
    experts: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "qwen3_moe": Family(qk_norm=True, experts=True),
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding; `factor` is read for kinds `linear` and `llama3`."""

    theta: float
    kind: str = "default"
    factor: float = 1.0


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
    """The shape of a model, read from its HF config and checked to be expressible."""

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
    experts: Experts | None = None


_LLAMA3_FIXED = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Megatron-Core 0.16.1 hard-codes these three; only `factor` can be set."""

_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "partial_rotary_factor": (1.0, 1),
    "quantization_config": (None,),
}
"""HF fields that may be absent but, when present, must have one of these values."""


def architecture_from_config(config: Mapping[str, Any]) -> Architecture:
    """Read a complete HF config (defaults filled in, rope in `rope_parameters`).

    Raises:
        ValueError: an unknown `model_type`, or a field whose value Megatron-Core cannot express.
    """
    model_type = config["model_type"]
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; one of {sorted(FAMILIES)}")
    if problems := list(size_problems(config)):
        raise ValueError("; ".join(problems))
    for key, allowed in _MUST_BE.items():
        if key in config and config[key] not in allowed:
            raise ValueError(f"{key} is {config[key]!r}; {model_type} supports only {allowed[0]!r}")
    family = FAMILIES[model_type]
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config["head_dim"] if "head_dim" in config else None
    return Architecture(
        family=model_type,
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
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        rope=_rope(config["rope_parameters"]),
        window=_window(config),
        experts=_experts(config) if family.experts else None,
    )


def _rope(rope: Mapping[str, Any]) -> Rope:
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


def _window(config: Mapping[str, Any]) -> int | None:
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        return None
    window = config["sliding_window"] if "sliding_window" in config else None
    kinds = set(config["layer_types"] or ()) if "layer_types" in config else set()
    if window and kinds - {"sliding_attention"}:
        raise ValueError(
            f"layer_types mixes {sorted(kinds)}; layers must be all sliding_attention or all full"
        )
    return window or None


def _experts(config: Mapping[str, Any]) -> Experts:
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


class Layout(Enum):
    """How HF tensors lie in a Megatron parameter, and which axis TP cuts.

    PLAIN: as is, on every TP rank. ROW: axis 1 cut. VOCAB: rows padded, then cut. QKV: per
    key/value group its query heads, then key, then value; cut by rows. GATE_UP: each rank holds
    its rows of gate above its rows of up.
    """

    PLAIN = "plain"
    ROW = "row"
    VOCAB = "vocab"
    QKV = "qkv"
    GATE_UP = "gate_up"


@dataclass(frozen=True)
class Parameter:
    """One Megatron parameter (global layer and expert numbers) and the HF tensors in it."""

    name: str
    layout: Layout
    hf_names: tuple[str, ...]
    hf_shapes: tuple[tuple[int, ...], ...]
    layer: int | None = None
    expert: int | None = None
    tied_copy: bool = False
    """The last pipeline stage's copy of a tied embedding: loaded, never sent."""

    @property
    def replicated(self) -> bool:
        """Whether every TP rank holds all of it."""
        return self.layout is Layout.PLAIN


def parameters(architecture: Architecture) -> Iterator[Parameter]:
    """Every parameter of the model, in the order of the forward pass."""
    a = architecture
    vocab_shape = (a.vocab_size, a.hidden_size)
    yield Parameter(EMBEDDING, Layout.VOCAB, ("model.embed_tokens.weight",), (vocab_shape,))
    for layer in range(a.num_layers):
        yield from _attention(a, layer)
        if a.experts is not None and a.experts.layers[layer]:
            yield from _expert_mlps(a, a.experts, layer)
        else:
            yield from _mlp(layer, "mlp", "mlp", a.hidden_size, a.ffn_size)
    norm_shape = (a.hidden_size,)
    norm = "decoder.final_layernorm.weight"
    yield Parameter(norm, Layout.PLAIN, ("model.norm.weight",), (norm_shape,))
    head = "model.embed_tokens.weight" if a.tied else "lm_head.weight"
    yield Parameter(OUTPUT, Layout.VOCAB, (head,), (vocab_shape,), tied_copy=a.tied)


def _attention(a: Architecture, layer: int) -> Iterator[Parameter]:
    ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    q_rows, kv_rows = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim

    def plain(name: str, hf_name: str, size: int) -> Parameter:
        return Parameter(
            f"{ours}.{name}", Layout.PLAIN, (f"{theirs}.{hf_name}",), ((size,),), layer
        )

    def qkv(what: str, columns: tuple[int, ...]) -> Parameter:
        return Parameter(
            f"{ours}.self_attention.linear_qkv.{what}",
            Layout.QKV,
            tuple(f"{theirs}.self_attn.{x}_proj.{what}" for x in "qkv"),
            ((q_rows, *columns), (kv_rows, *columns), (kv_rows, *columns)),
            layer,
        )

    yield plain("input_layernorm.weight", "input_layernorm.weight", a.hidden_size)
    yield qkv("weight", (a.hidden_size,))
    if a.qkv_bias:
        yield qkv("bias", ())
    if a.qk_norm:
        for x in "qk":
            yield plain(
                f"self_attention.{x}_layernorm.weight", f"self_attn.{x}_norm.weight", a.head_dim
            )
    yield Parameter(
        f"{ours}.self_attention.linear_proj.weight",
        Layout.ROW,
        (f"{theirs}.self_attn.o_proj.weight",),
        ((a.hidden_size, q_rows),),
        layer,
    )
    yield plain("pre_mlp_layernorm.weight", "post_attention_layernorm.weight", a.hidden_size)


def _mlp(
    layer: int, ours: str, theirs: str, hidden: int, ffn: int, expert: int | None = None
) -> Iterator[Parameter]:
    ours, theirs = f"decoder.layers.{layer}.{ours}", f"model.layers.{layer}.{theirs}"
    yield Parameter(
        f"{ours}.linear_fc1.weight",
        Layout.GATE_UP,
        (f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"),
        ((ffn, hidden), (ffn, hidden)),
        layer,
        expert,
    )
    yield Parameter(
        f"{ours}.linear_fc2.weight",
        Layout.ROW,
        (f"{theirs}.down_proj.weight",),
        ((hidden, ffn),),
        layer,
        expert,
    )


def _expert_mlps(a: Architecture, experts: Experts, layer: int) -> Iterator[Parameter]:
    yield Parameter(
        f"decoder.layers.{layer}.mlp.router.weight",
        Layout.PLAIN,
        (f"model.layers.{layer}.mlp.gate.weight",),
        ((experts.count, a.hidden_size),),
        layer,
    )
    for e in range(experts.count):
        name = f"mlp.experts.{e}"
        yield from _mlp(layer, name, name, a.hidden_size, experts.ffn_size, expert=e)


_TE_NAMES = (
    (r"self_attention\.linear_qkv\.layer_norm_weight", "input_layernorm.weight"),
    (r"mlp\.linear_fc1\.layer_norm_weight", "pre_mlp_layernorm.weight"),
    (r"experts\.(linear_fc\d)\.weight(\d+)", r"experts.\2.\1.weight"),
    (r"experts\.local_experts\.(\d+)\.", r"experts.\1."),
)


def canonical_name(name: str) -> str:
    """The name used here for a parameter of the local or the Transformer Engine layer spec."""
    for pattern, replacement in _TE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Vocabulary rows in the model: `vocab_size` rounded up to `VOCAB_MULTIPLE * tp`."""
    unit = VOCAB_MULTIPLE * tp
    return -(-vocab_size // unit) * unit


def stage_of_layer(layer: int, *, num_layers: int, pp: int, vpp: int) -> int:
    """Pipeline stage that holds a layer; `vpp` chunks per stage are dealt out in turn."""
    return layer // (num_layers // (pp * vpp)) % pp


def shard(
    parameter: Parameter,
    tensors: Sequence[torch.Tensor],
    architecture: Architecture,
    *,
    rank: int,
    size: int,
) -> torch.Tensor:
    """The part of a parameter that TP rank `rank` of `size` holds, from its HF tensors."""
    first = tensors[0]
    if parameter.layout is Layout.PLAIN:
        return first
    if parameter.layout is Layout.ROW:
        return first.chunk(size, dim=1)[rank]
    if parameter.layout is Layout.GATE_UP:
        return torch.cat([t.chunk(size)[rank] for t in tensors])
    if parameter.layout is Layout.QKV:
        groups, dim = architecture.num_kv_heads, architecture.head_dim
        parts = [t.reshape(groups, -1, dim, *t.shape[1:]) for t in tensors]
        if groups % size == 0:  # fuse this rank's groups only
            return torch.cat([part.chunk(size)[rank] for part in parts], dim=1).flatten(0, 2)
        return torch.cat(parts, dim=1).flatten(0, 2).chunk(size)[rank]
    rows = padded_vocab_size(architecture.vocab_size, size) // size
    real = first[rank * rows : (rank + 1) * rows]
    return torch.cat([real, real.new_zeros(rows - len(real), *real.shape[1:])])


def unfuse(
    parameter: Parameter, shards: torch.Tensor, architecture: Architecture
) -> list[torch.Tensor]:
    """HF tensors from the shards of all TP ranks, stacked `[tp, *shard]`.

    They are contiguous and, where the layout allows, views into `shards`.
    """
    if parameter.layout is Layout.PLAIN:
        return [shards[0]]
    if parameter.layout is Layout.ROW:
        return [shards[0] if len(shards) == 1 else torch.cat(shards.unbind(0), dim=1)]
    if parameter.layout is Layout.VOCAB:
        return [shards.flatten(0, 1)[: architecture.vocab_size]]
    if parameter.layout is Layout.GATE_UP:
        halves = shards.unflatten(1, (2, -1))  # [tp, 2, rows, hidden]
        return [halves[:, i].flatten(0, 1).contiguous() for i in range(2)]
    groups, dim = architecture.num_kv_heads, architecture.head_dim
    heads = architecture.num_heads // groups
    full = shards.flatten(0, 1).unflatten(0, (groups, heads + 2, dim))
    return [part.flatten(0, 2).contiguous() for part in full.split([heads, 1, 1], dim=1)]
