"""FP8 training: what each recipe is, needs and is worth; pure, no device is asked here.

Transformer Engine computes the matrix products of attention and MLP blocks (experts too) in FP8; it
alone chooses and keeps the scales, none of that is computed here. In `megatron.precision` stay:
embedding and output layer (outside the blocks; log-probs are read there), norms, attention's core,
the router of experts, gradients' sums, and `megatron.fp8_bf16_layers` layers at each end. Weights
stay bf16 with fp32 main weights in the optimizer: a layer quantises its weight once per pass, so
weight syncs, checkpoints and the reference see ordinary bf16 weights. Weights stored in FP8
(Megatron's `fp8_param`) are not offered.

| recipe     | scale                                              | formats              |
|------------|----------------------------------------------------|----------------------|
| delayed    | per tensor, from the largest value in past passes  | E4M3, gradients E5M2 |
| tensorwise | per tensor, from its own largest value             | E4M3, gradients E5M2 |
| blockwise  | per 128 x 128 weights, per 128 activations         | E4M3                 |
| mxfp8      | per 32 values                                      | E4M3                 |

`delayed` keeps a history of largest values in the modules: the first pass of a run computes with
scales of 1, and every pass, of log-probs too, moves them. Checkpoints keep it, which was not tried
on a GPU (`megatron.fp8_state`). Prefer one of the others.

Sources: Transformer Engine's `quantization.py` (check_*_support) and `common/recipe`, 2.9 to 2.11;
Megatron-Core 0.16.1's `fp8_utils.py` (alignment, minimal versions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

RecipeName = Literal["delayed", "tensorwise", "blockwise", "mxfp8"]
Version = tuple[int, int]

TRANSFORMER_ENGINE: tuple[Version, Version] = ((2, 9), (2, 12))
"""What megatron-core 0.16.1 accepts: at least the first, below the second (setup.py, GPU)."""


@dataclass(frozen=True)
class Recipe:
    """One recipe; capabilities are CUDA's (major, minor).

    formats: Megatron's `fp8`: `hybrid` is E4M3 forward, E5M2 for gradients.
    capability, below: from which compute capability on, and up to which (excluded).
    cuda: the oldest CUDA that torch may be built for.
    multiple: sizes of matrices, tokens included, are multiples of this.
    """

    formats: Literal["hybrid", "e4m3"]
    capability: Version
    cuda: Version
    multiple: int
    below: Version | None = None


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "delayed": Recipe("hybrid", capability=(8, 9), cuda=(12, 1), multiple=16),
        "tensorwise": Recipe("hybrid", capability=(8, 9), cuda=(12, 1), multiple=16),
        # 16 on Hopper; Blackwell computes it by way of MXFP8, with 32.
        "blockwise": Recipe("e4m3", capability=(9, 0), cuda=(12, 9), multiple=32),
        "mxfp8": Recipe("e4m3", capability=(10, 0), cuda=(12, 8), multiple=32, below=(12, 0)),
    }
)


def unsupported(
    name: str, *, gpu: str, capability: Version, cuda: Version, engine: Version | None
) -> str | None:
    """Why a GPU or installation cannot train with recipe `name`; None if it can.

    gpu: the device's name; cuda: version that torch is built for; engine: Transformer Engine's
        version, None where it is not installed.
    """
    recipe, key = RECIPES[name], f"megatron.fp8 is {name!r}"
    if capability < recipe.capability:
        return (
            f"{key}, which needs compute capability {recipe.capability}, but {gpu} has"
            f" {capability}; it has {_choices(capability, cuda)}"
        )
    if recipe.below is not None and capability >= recipe.below:
        return (
            f"{key}, which Transformer Engine has not for compute capability {recipe.below} and"
            f" above, but {gpu} has {capability}; it has {_choices(capability, cuda)}"
        )
    if cuda < recipe.cuda:
        return (
            f"{key}, which needs CUDA {_dotted(recipe.cuda)}, but torch is built for"
            f" {_dotted(cuda)}; it has {_choices(capability, cuda)}"
        )
    if engine is None:
        return (
            f"{key} but Transformer Engine is not installed; install it or set megatron.fp8 to null"
        )
    oldest, newest = TRANSFORMER_ENGINE
    if not oldest <= engine < newest:
        return (
            f"{key} but Transformer Engine is {_dotted(engine)}; megatron-core 0.16.1 needs"
            f" >={_dotted(oldest)},<{_dotted(newest)}: install such a version"
        )
    return None


def available(*, capability: Version, cuda: Version) -> tuple[str, ...]:
    """Recipes that a GPU can run with a fitting Transformer Engine."""
    return tuple(
        name
        for name, recipe in RECIPES.items()
        if capability >= recipe.capability
        and (recipe.below is None or capability < recipe.below)
        and cuda >= recipe.cuda
    )


def token_multiple(name: str | None) -> int:
    """Multiple of a rank's tokens, the inner size of the product that makes weight gradients."""
    return 1 if name is None else RECIPES[name].multiple


def shape_problems(
    name: str,
    shape: Mapping[str, Any],
    *,
    tensor_parallel: int,
    expert_tensor_parallel: int,
    pipeline_parallel: int,
    bf16_layers: int,
    min_hidden: int,
) -> Iterator[str]:
    """What keeps a model (`config.json`) from training with recipe `name`, or from gaining by it.

    A size that config.json leaves out is not judged.
    """
    key, multiple = f"megatron.fp8 is {name!r}", RECIPES[name].multiple
    hidden = shape.get("hidden_size", 0)
    if hidden < min_hidden:
        yield (
            f"{key} but the model's hidden_size is {hidden}, below megatron.fp8_min_hidden"
            f" {min_hidden}: small matrices lose time in FP8; set megatron.fp8 to null, or lower"
            " fp8_min_hidden where tools/bench/bench_gpu_step.py measured a gain"
        )
    sizes = _matrix_sizes(shape, tensor_parallel, expert_tensor_parallel)
    for size_name, (size, ranks) in sizes.items():
        if size % multiple:
            yield (
                f"{key} needs matrices whose sizes are multiples of {multiple}, but {size_name} is"
                f" {size} on each of {ranks} ranks; use fewer, or megatron.fp8 null"
            )
    layers = shape.get("num_hidden_layers")
    if bf16_layers and layers and bf16_layers > layers // pipeline_parallel:
        yield (
            f"megatron.fp8_bf16_layers is {bf16_layers}, more than the"
            f" {layers // pipeline_parallel} layers of a pipeline stage ({layers} layers, PP"
            f" {pipeline_parallel}); lower it"
        )


def _matrix_sizes(shape: Mapping[str, Any], tp: int, etp: int) -> dict[str, tuple[int, str]]:
    """Sizes of the blocks' matrices on one rank, and how many ranks of what share them."""
    sizes = {}
    hidden, heads = shape.get("hidden_size"), shape.get("num_attention_heads")
    cut = f"{tp} TP"
    if hidden:
        sizes["hidden_size"] = (hidden, cut)  # never cut
    if hidden and heads:
        head_dim = shape.get("head_dim") or hidden // heads
        kv_heads = shape.get("num_key_value_heads") or heads
        sizes["num_attention_heads * head_dim"] = (heads * head_dim // tp, cut)
        # Beyond the key heads TP repeats them.
        rows = (heads // tp + 2 * max(1, kv_heads // tp)) * head_dim
        sizes["query, key and value heads * head_dim"] = (rows, cut)
    if shape.get("intermediate_size"):
        sizes["intermediate_size"] = (shape["intermediate_size"] // tp, cut)
    if shape.get("moe_intermediate_size"):
        sizes["moe_intermediate_size"] = (shape["moe_intermediate_size"] // etp, f"{etp} ETP")
    return sizes


def _choices(capability: Version, cuda: Version) -> str:
    return ", ".join(available(capability=capability, cuda=cuda)) or "no FP8 recipe: use null"


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
