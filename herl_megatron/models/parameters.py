"""What a Hugging Face model is made of, and how its tensors make up Megatron-Core's.

Pure: torch, but neither Megatron nor a model. `parameters` lists every Megatron parameter in
stream order with the HF tensors that it is made of (named by the family); `shard` makes one TP
rank's part from HF tensors, `unfuse` goes back from all parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from herl_megatron.models.architecture import Architecture, Experts
from herl_megatron.models.family import LayerNames
from herl_megatron.models.known_families import FAMILIES

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
OUTPUT_NORM = "post_layernorm"
"""Module below the linear layer whose output it normalises."""
VOCAB_MULTIPLE = 128
"""Vocabulary rows per TP rank are a multiple of this (tensor-core friendly, as in Megatron)."""


class Layout(Enum):
    """How HF tensors lie in a Megatron parameter, and which axis TP cuts.

    PLAIN: as is, on every TP rank. ROW: axis 1 cut. VOCAB: rows padded, then cut. QKV: per
    key/value group its query heads, then key, then value; cut by rows. GATE_UP: each rank holds
    its rows of gate above its rows of up, which HF has in two tensors or, gate above up, in one.
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
    names = FAMILIES[a.family].names
    for number in range(a.num_layers):
        layer = _Layer(a, names, number)
        yield from layer.attention()
        if a.experts is not None and a.experts.layers[number]:
            yield from layer.experts(a.experts)
        else:
            yield from layer.dense_mlp()
    norm_shape = (a.hidden_size,)
    norm = "decoder.final_layernorm.weight"
    yield Parameter(norm, Layout.PLAIN, ("model.norm.weight",), (norm_shape,))
    head = "model.embed_tokens.weight" if a.tied else "lm_head.weight"
    yield Parameter(OUTPUT, Layout.VOCAB, (head,), (vocab_shape,), tied_copy=a.tied)


@dataclass(frozen=True)
class _Layer:
    """The parameters of one layer: Megatron's names are those of its local layer spec."""

    architecture: Architecture
    names: LayerNames
    number: int

    def attention(self) -> Iterator[Parameter]:
        a, names = self.architecture, self.names
        q_rows, kv_rows = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        yield self._plain("input_layernorm.weight", names.attention_norm, (a.hidden_size,))
        for what in ("weight", "bias") if a.qkv_bias else ("weight",):
            columns = (a.hidden_size,) if what == "weight" else ()
            yield self._make(
                f"self_attention.linear_qkv.{what}",
                Layout.QKV,
                {
                    f"{name}.{what}": (rows, *columns)
                    for name, rows in zip(names.qkv, (q_rows, kv_rows, kv_rows), strict=True)
                },
            )
        if a.qk_norm:
            for x, name in zip("qk", names.qk_norms, strict=True):
                yield self._plain(f"self_attention.{x}_layernorm.weight", name, (a.head_dim,))
        output = {f"{names.attention_output}.weight": (a.hidden_size, q_rows)}
        yield self._make("self_attention.linear_proj.weight", Layout.ROW, output)
        if a.output_norms:
            ours, theirs = f"self_attention.linear_proj.{OUTPUT_NORM}", names.attention_output_norm
            yield self._plain(f"{ours}.weight", theirs, (a.hidden_size,))
        yield self._plain("pre_mlp_layernorm.weight", names.mlp_norm, (a.hidden_size,))

    def dense_mlp(self) -> Iterator[Parameter]:
        a, names = self.architecture, self.names
        yield from self._mlp("mlp", names.mlp, a.ffn_size)
        if a.output_norms:
            ours = f"mlp.linear_fc2.{OUTPUT_NORM}.weight"
            yield self._plain(ours, names.mlp_output_norm, (a.hidden_size,))

    def _mlp(
        self, ours: str, theirs: str, ffn: int, *, expert: int | None = None
    ) -> Iterator[Parameter]:
        """A dense MLP or an expert; where it lies here and there."""
        hidden, names = self.architecture.hidden_size, self.names
        rows = 2 * ffn // len(names.gate_up)
        first = {f"{theirs}.{name}.weight": (rows, hidden) for name in names.gate_up}
        yield self._make(f"{ours}.linear_fc1.weight", Layout.GATE_UP, first, expert)
        second = {f"{theirs}.{names.down}.weight": (hidden, ffn)}
        yield self._make(f"{ours}.linear_fc2.weight", Layout.ROW, second, expert)

    def experts(self, experts: Experts) -> Iterator[Parameter]:
        shape = (experts.count, self.architecture.hidden_size)
        yield self._plain("mlp.router.weight", self.names.router, shape)
        for e in range(experts.count):
            theirs = f"{self.names.experts}.{e}"
            yield from self._mlp(f"mlp.experts.{e}", theirs, experts.ffn_size, expert=e)

    def _plain(self, ours: str, theirs: str, shape: tuple[int, ...]) -> Parameter:
        return self._make(ours, Layout.PLAIN, {f"{theirs}.weight": shape})

    def _make(
        self,
        ours: str,
        layout: Layout,
        theirs: Mapping[str, tuple[int, ...]],
        expert: int | None = None,
    ) -> Parameter:
        return Parameter(
            f"decoder.layers.{self.number}.{ours}",
            layout,
            tuple(f"model.layers.{self.number}.{name}" for name in theirs),
            tuple(theirs.values()),
            self.number,
            expert,
        )


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
        halves = first.chunk(2) if len(tensors) == 1 else tensors
        return torch.cat([half.chunk(size)[rank] for half in halves])
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
        halves = shards.unflatten(1, (2, -1)).transpose(0, 1)  # [2, tp, rows, hidden]
        if len(parameter.hf_names) == 1:
            return [halves.flatten(0, 2).contiguous()]
        return [half.flatten(0, 1).contiguous() for half in halves]
    groups, dim = architecture.num_kv_heads, architecture.head_dim
    heads = architecture.num_heads // groups
    full = shards.flatten(0, 1).unflatten(0, (groups, heads + 2, dim))
    return [part.flatten(0, 2).contiguous() for part in full.split([heads, 1, 1], dim=1)]
