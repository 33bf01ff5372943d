"""Where a parameter lies in a Megatron checkpoint (pure).

A checkpoint holds one global tensor per kind of parameter: layers of a dense model are stacked on
a leading axis, so are a layer's experts. Tensor parallelism cuts it into blocks. The names are
those of Megatron-Core's `sharded_state_dict`, so its own loader reads what is written here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from herl_megatron.models.architecture import Architecture
from herl_megatron.models.parameters import EMBEDDING, Layout, Parameter, padded_vocab_size
from herl_megatron.models.stages import chunk_sizes, stage_of_layer

_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""The two norms go by the name that they have where Transformer Engine fuses them with the linear
layer; with a layer of experts it fuses none."""


@dataclass(frozen=True)
class TrainerLayout:
    """The layout that a checkpoint is written for; any other can read it."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    vpp: int = 1
    etp: int | None = None
    """Ranks that cut an expert; none is `tp`."""

    @property
    def stage_ranks(self) -> int:
        """Ranks of a stage that hold something new: its first replica, dense and of experts."""
        return max(self.tp, self._etp * self.ep)

    @property
    def axes(self) -> list[int]:
        """Sizes of TP, PP, CP, DP, EP and ETP, with the fewest ranks that the others allow."""
        dp = math.lcm(self.tp, self._etp * self.ep) // self.tp
        return [self.tp, self.pp, 1, dp, self.ep, self._etp]

    @property
    def _etp(self) -> int:
        return self.etp or self.tp

    def cut(self, parameter: Parameter) -> int:
        """Ranks that a parameter is cut over."""
        return self.tp if parameter.expert is None else self._etp

    def stage(self, parameter: Parameter, architecture: Architecture) -> int:
        """The pipeline stage that holds a parameter."""
        if parameter.name == EMBEDDING:
            return 0
        if parameter.layer is None:  # final norm and output layer
            return self.pp - 1
        return stage_of_layer(
            parameter.layer, num_layers=architecture.num_layers, pp=self.pp, vpp=self.vpp
        )

    def check(self, architecture: Architecture) -> None:
        """Refuse a layout that cannot cut the model.

        Raises:
            ValueError: with both sizes.
        """
        a, tp = architecture, self.tp
        sizes = {
            "num_attention_heads": (a.num_heads, "tp", tp),
            "intermediate_size": (a.ffn_size, "tp", tp),
        }
        if a.experts is not None:
            sizes["num_experts"] = (a.experts.count, "ep", self.ep)
            sizes["moe_intermediate_size"] = (a.experts.ffn_size, "etp", self._etp)
        elif self.ep > 1:
            raise ValueError(f"ep is {self.ep} but a {a.family} model has no experts; use 1")
        elif self.etp is not None:
            raise ValueError(f"etp is {self.etp} but a {a.family} model has no experts")
        if self.vpp > 1 and self.pp == 1:
            raise ValueError(f"vpp is {self.vpp} with pp 1; an interleaved pipeline needs pp > 1")
        chunk_sizes(a.num_layers, self.pp * self.vpp)
        for key, (size, by, parts) in sizes.items():
            if size % parts:
                raise ValueError(f"the model's {key} {size} is not divisible by {by} {parts}")
        if a.num_kv_heads % tp and tp % a.num_kv_heads:
            raise ValueError(
                f"the model's num_key_value_heads {a.num_kv_heads} and tp {tp}: one must divide"
                " the other"
            )


@dataclass(frozen=True)
class Place:
    """A parameter in its checkpoint tensor."""

    key: str
    lead: tuple[int, ...]
    """Its index on the leading axis (layer or expert); empty where there is none."""
    lead_size: tuple[int, ...]
    shape: tuple[int, ...]
    """Its own whole shape, vocabulary padded for `tp`."""

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint tensor."""
        return self.lead_size + self.shape


@dataclass(frozen=True)
class Block:
    """Rows `rows` of HF tensor `tensor`, or all of the fused parameter (`tensor` None), of one TP
    rank; `offsets` are inside the whole parameter, `sizes` the block's shape."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    tensor: int | None = None
    rows: tuple[int, int] = (0, 0)


def place(parameter: Parameter, architecture: Architecture, *, tp: int) -> Place:
    """Key and shapes of a parameter; a tied copy lies where the embedding does."""
    shape = whole_shape(parameter, architecture, tp=tp)
    if parameter.tied_copy:
        return Place(EMBEDDING, (), (), shape)
    if parameter.layer is None:
        return Place(parameter.name, (), (), shape)
    prefix = f"decoder.layers.{parameter.layer}."
    name = parameter.name.removeprefix(prefix)
    experts = architecture.experts
    if not (experts and experts.layers[parameter.layer] and name == "pre_mlp_layernorm.weight"):
        name = _NORMS.get(name, name)
    if experts is None:  # all layers have the same parts
        return Place(
            f"decoder.layers.{name}", (parameter.layer,), (architecture.num_layers,), shape
        )
    if parameter.expert is not None:
        name = name.replace(f"experts.{parameter.expert}.", "experts.experts.")
        return Place(prefix + name, (parameter.expert,), (experts.count,), shape)
    return Place(prefix + name, (), (), shape)


def whole_shape(parameter: Parameter, architecture: Architecture, *, tp: int) -> tuple[int, ...]:
    """Shape of the parameter without tensor parallelism."""
    shapes = parameter.hf_shapes
    if parameter.layout is Layout.VOCAB:
        return (padded_vocab_size(architecture.vocab_size, tp), *shapes[0][1:])
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def blocks(parameter: Parameter, architecture: Architecture, *, rank: int, tp: int) -> list[Block]:
    """What TP rank `rank` of `tp` holds, in the order of its rows.

    Padding of the vocabulary is a block of its own (`tensor` None), as is a fused query, key and
    value matrix; all else are rows of one HF tensor or, for ROW, a cut of its columns.
    """
    shape = whole_shape(parameter, architecture, tp=tp)
    rest = tuple(0 for _ in shape[1:])
    if parameter.layout is Layout.PLAIN:
        return [Block((0, *rest), shape, tensor=0, rows=(0, shape[0]))]
    if parameter.layout is Layout.ROW:
        columns = shape[1] // tp
        return [Block((0, rank * columns), (shape[0], columns), tensor=0, rows=(0, shape[0]))]
    if parameter.layout is Layout.QKV:
        rows = shape[0] // tp
        return [Block((rank * rows, *rest), (rows, *shape[1:]))]
    if parameter.layout is Layout.GATE_UP:
        ffn, fused = shape[0] // 2, len(parameter.hf_shapes) == 1
        rows = ffn // tp
        found = []
        for half in range(2):
            first = half * ffn + rank * rows
            tensor, above = (0, 0) if fused else (half, half * ffn)
            part = (first - above, first - above + rows)
            found.append(Block((first, *rest), (rows, *shape[1:]), tensor=tensor, rows=part))
        return found
    rows = shape[0] // tp
    first, last = rank * rows, (rank + 1) * rows
    real = max(first, min(last, architecture.vocab_size))
    found = []
    if real > first:
        found.append(
            Block((first, *rest), (real - first, *shape[1:]), tensor=0, rows=(first, real))
        )
    if last > real:
        found.append(Block((real, *rest), (last - real, *shape[1:])))
    return found
