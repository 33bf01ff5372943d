"""Rules between the configuration and the Hugging Face folder that it names.

Only `config.json` and the names and sizes of the files are read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from herl_megatron.config import fp8
from herl_megatron.config.schema import Config
from herl_megatron.observability.manifest import MANIFEST, damage

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
"""Families that `weight_sync.hf_names` knows (a test keeps the two equal)."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_BYTES = {"fp32": 4, "bf16": 2}
_VOCAB_BLOCK = 64  # vLLM's
_CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def model_problems(
    config: Config, *, trains: bool, samples: bool, device: Literal["cpu", "cuda"]
) -> Iterator[str]:
    """What is wrong with `model.path` for this run."""
    folder = Path(config.model.path)
    if not folder.is_dir():
        yield (
            f"model.path: no such folder: {config.model.path!r} (from {Path.cwd()}); it must be a"
            " Hugging Face folder on this machine"
        )
        return
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        yield f"model.path: {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)})"
    yield from _weights(config, folder, trains=trains)
    try:
        shape = read_shape(folder / "config.json")
    except ValueError as error:
        yield f"model.path: {error}"
        return
    yield from shape_problems(config, shape, trains=trains, samples=samples, device=device)


def shape_problems(
    config: Config,
    shape: Mapping[str, Any],
    *,
    trains: bool,
    samples: bool,
    device: Literal["cpu", "cuda"],
) -> Iterator[str]:
    """What is wrong between the run and a model's `config.json`, wherever that lies."""
    if shape["model_type"] not in SUPPORTED_MODEL_TYPES:
        yield (
            f"model.path: model_type {shape['model_type']!r} is not supported; one of"
            f" {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
        return
    if trains:
        yield from _layout(config, shape)
        if device == "cuda":
            yield from _window(config, shape)
        if config.megatron.fp8 and device == "cuda":
            yield from fp8.shape_problems(
                config.megatron.fp8,
                shape,
                tensor_parallel=config.megatron.tensor_parallel,
                expert_tensor_parallel=config.megatron.etp,
                pipeline_parallel=config.megatron.pipeline_parallel,
                bf16_layers=config.megatron.fp8_bf16_layers,
                min_hidden=config.megatron.fp8_min_hidden,
            )
    if samples:
        yield from _engine_split(config, shape)
        yield from _lengths(config, shape)
        if device == "cpu":
            yield from _head_dim(shape)
            yield from _kv_cache(config, shape)


def _weights(config: Config, folder: Path, *, trains: bool) -> Iterator[str]:
    """Where the first weights come from: exactly one of three places, and they are there."""
    model = config.model
    if not model.megatron_path:
        if not model.random_init and not weights_bytes(folder):
            yield (
                f"model.path: {folder} has no *.safetensors weights; add them, name converted ones"
                " in model.megatron_path, or set model.random_init=true to start from random ones"
            )
        return
    if model.random_init:
        yield (
            f"model.megatron_path is {model.megatron_path!r} and model.random_init is true: start"
            " from weights or from random ones?"
        )
    if not trains:
        yield (
            f"model.megatron_path is {model.megatron_path!r}, but evaluation reads Hugging Face"
            " weights: convert it with tools/convert_megatron_to_hf.py and name that in model.path"
        )
    start = Path(model.megatron_path)
    found = [part for part in (start, start / "trainer") if (part / ".metadata").is_file()]
    if not found:
        yield (
            f"model.megatron_path: {model.megatron_path!r} is no Megatron checkpoint (from"
            f" {Path.cwd()}); write one with tools/convert_hf_to_megatron.py"
        )
        return
    for described in (found[0], found[0].parent):
        if (described / MANIFEST).is_file() and (wrong := damage(described, hashes=False)):
            yield f"model.megatron_path: {described} is damaged: {wrong}; convert or copy it again"


def weights_bytes(folder: str | Path) -> int:
    """Total size of the folder's safetensors files, 0 if there are none."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def read_shape(path: Path) -> Mapping[str, Any]:
    """`config.json` with a `model_type`.

    Raises:
        ValueError: no such file, not JSON, or no model type in it.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no config.json; it is not a Hugging Face folder")
    try:
        shape = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(shape, dict) or "model_type" not in shape:
        raise ValueError(f"{path} names no model_type")
    return shape


def _layout(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """TP cuts heads and MLP, PP cuts layers. A size that config.json leaves out is not judged."""
    megatron = config.megatron
    names = ("num_attention_heads", "intermediate_size")
    yield from _split("megatron.tensor_parallel", megatron.tensor_parallel, shape, names)
    layers, chunks = shape.get("num_hidden_layers"), megatron.pipeline_parallel
    if megatron.virtual_pipeline:
        chunks *= megatron.virtual_pipeline
    if layers and layers % chunks:
        yield (
            f"megatron.pipeline_parallel {megatron.pipeline_parallel} * virtual_pipeline"
            f" {megatron.virtual_pipeline or 1} = {chunks} does not divide the model's"
            f" num_hidden_layers {layers}"
        )
    yield from _experts(config, shape)


def _split(key: str, tp: int, shape: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    """TP cuts the sizes `names` evenly; key heads that are fewer than the ranks are repeated."""
    for name in names:
        if name in shape and shape[name] % tp:
            yield f"{key} {tp} does not divide the model's {name} {shape[name]}; choose a divisor"
    kv_heads = shape.get("num_key_value_heads")
    if kv_heads and kv_heads % tp and tp % kv_heads:
        yield (
            f"{key} {tp} and the model's num_key_value_heads {kv_heads}: one must divide the other"
        )


def _engine_split(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """vLLM cuts experts as it cuts all else, and pads the vocabulary to whole blocks."""
    padded = -(-shape.get("vocab_size", 0) // _VOCAB_BLOCK) * _VOCAB_BLOCK
    sizes = {**shape, "vocab_size (padded)": padded}
    names = ("num_attention_heads", "intermediate_size", "moe_intermediate_size")
    key, tp = "rollout.tensor_parallel", config.rollout.tensor_parallel
    yield from _split(key, tp, sizes, (*names, "vocab_size (padded)"))


def _window(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """Transformer Engine passes key and value from rank to rank, which takes no window."""
    cp, window = config.megatron.context_parallel, shape.get("sliding_window")
    if cp > 1 and window and shape.get("use_sliding_window", True):
        yield (
            f"megatron.context_parallel is {cp} and the model's sliding_window {window}: on GPUs"
            " they do not go together; set context_parallel to 1"
        )


def _experts(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    megatron = config.megatron
    experts = shape.get("num_experts") or shape.get("num_local_experts")
    if experts is None:
        if megatron.expert_parallel > 1:
            yield (
                f"megatron.expert_parallel is {megatron.expert_parallel} but a"
                f" {shape['model_type']} has no experts; set it to 1"
            )
        if megatron.expert_tensor_parallel is not None:
            yield (
                f"megatron.expert_tensor_parallel is {megatron.expert_tensor_parallel} but a"
                f" {shape['model_type']} has no experts; set it to null"
            )
        return
    if experts % megatron.expert_parallel:
        yield (
            f"megatron.expert_parallel {megatron.expert_parallel} does not divide the model's"
            f" {experts} experts"
        )
    width = shape.get("moe_intermediate_size", 0)
    if width % megatron.etp:
        key = "tensor" if megatron.expert_tensor_parallel is None else "expert_tensor"
        yield (
            f"megatron.{key}_parallel {megatron.etp} does not divide the model's"
            f" moe_intermediate_size {width}; choose a divisor for megatron.expert_tensor_parallel"
        )
    if megatron.tensor_parallel > 1 and not megatron.sequence_parallel:
        yield (
            f"megatron.tensor_parallel is {megatron.tensor_parallel} and the model has experts;"
            " set megatron.sequence_parallel=true"
        )
    if (chosen := shape.get("num_experts_per_tok", 0)) > experts:
        yield f"model.path: num_experts_per_tok {chosen} is more than the {experts} experts"
    if shape.get("output_router_logits"):
        yield (
            "model.path: output_router_logits is true, with which Hugging Face adds"
            f" router_aux_loss_coef {shape.get('router_aux_loss_coef')} times a balancing loss;"
            " training here adds none: set it to false in config.json"
        )


def _lengths(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """The engine is started for the longest prompt plus the longest response."""
    data, response = config.data, config.rollout.max_response_tokens
    positions = shape.get("max_position_embeddings")
    for key, prompt in (
        ("max_prompt_tokens", data.max_prompt_tokens),
        ("max_experience_tokens", data.max_experience_tokens),
    ):
        if positions and prompt + response > positions:
            yield (
                f"data.{key} {prompt} + rollout.max_response_tokens {response} ="
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
    data, rollout = config.data, config.rollout
    heads, size = shape.get("num_attention_heads"), shape.get("hidden_size")
    layers = shape.get("num_hidden_layers")
    if not (heads and size and layers):
        return
    head_dim = shape.get("head_dim") or size // heads
    kv_heads = max(1, (shape.get("num_key_value_heads") or heads) // rollout.tensor_parallel)
    longest = max(data.max_prompt_tokens, data.max_experience_tokens) + rollout.max_response_tokens
    need = 2 * layers * kv_heads * head_dim * _BYTES[rollout.dtype] * longest
    if need > rollout.kv_cache_bytes:
        yield (
            f"rollout.kv_cache_bytes is {rollout.kv_cache_bytes}, but one sequence of {longest}"
            f" tokens needs {need}; raise it or lower the token limits"
        )
