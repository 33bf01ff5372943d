"""Rules of section `megatron`: the layout of the trainer's ranks, FP8, and the model's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from herl_megatron import fp8
from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import TRAINS, Purpose
from herl_megatron.config.rules.data import split_problems
from herl_megatron.config.schema import Config


def problems(config: Config, *, purpose: Purpose, machine: Machine) -> Iterator[str]:
    """Between keys."""
    if purpose not in TRAINS:
        return
    yield from _layout(config)
    if machine.device(config.cluster.device) == "cuda":
        yield from _fp8(config, purpose)  # on the CPU it is refused for good


def _layout(config: Config) -> Iterator[str]:
    megatron = config.megatron
    if megatron.sequence_parallel and megatron.tensor_parallel == 1:
        yield (
            "megatron.sequence_parallel is true with megatron.tensor_parallel 1; it splits over TP,"
            " so set it to false or raise tensor_parallel"
        )
    virtual = megatron.virtual_pipeline
    if virtual is not None and megatron.pipeline_parallel == 1:
        yield (
            f"megatron.virtual_pipeline is {virtual} with megatron.pipeline_parallel 1; set it to"
            " null or raise pipeline_parallel"
        )
    if virtual is not None and virtual < 2:
        yield f"megatron.virtual_pipeline is {virtual}; use 2 or more, or null for plain 1F1B"
    yield from _expert_ranks(config)


def _expert_ranks(config: Config) -> Iterator[str]:
    """Experts are laid over the ranks of a stage by ETP and EP, whatever TP, CP and DP are."""
    m = config.megatron
    if m.stage_ranks % (m.etp * m.expert_parallel) == 0:
        return
    if m.expert_tensor_parallel is None:
        yield (
            f"megatron.expert_parallel {m.expert_parallel} does not divide data_parallel *"
            f" context_parallel = {m.data_parallel * m.context_parallel}; choose a divisor, or"
            " lay experts over the TP ranks too with megatron.expert_tensor_parallel"
        )
        return
    yield (
        f"megatron.expert_tensor_parallel {m.expert_tensor_parallel} * expert_parallel"
        f" {m.expert_parallel} does not divide the {m.stage_ranks} ranks of a pipeline stage (TP"
        f" {m.tensor_parallel} * CP {m.context_parallel} * DP {m.data_parallel}); choose divisors"
    )


def _fp8(config: Config, purpose: Purpose) -> Iterator[str]:
    megatron = config.megatron
    if megatron.fp8 is None:
        if megatron.fp8_bf16_layers:
            yield (
                f"megatron.fp8_bf16_layers is {megatron.fp8_bf16_layers} but megatron.fp8 is null;"
                " set it to 0, or choose a recipe"
            )
        return
    if megatron.precision != "bf16":
        yield (
            f"megatron.fp8 is {megatron.fp8!r} with megatron.precision {megatron.precision!r}; what"
            " FP8 leaves out computes in bf16: set precision to bf16"
        )
    if megatron.fp8 != "delayed":
        return
    if megatron.fp8_bf16_layers:
        yield (
            f"megatron.fp8_bf16_layers is {megatron.fp8_bf16_layers} with megatron.fp8 'delayed',"
            " whose scales span all layers; use 0 or another recipe"
        )
    if purpose == "train" and megatron.reference == "host" and config.algorithm.kl_coef:
        yield (
            "megatron.reference is 'host' with megatron.fp8 'delayed': two models in the same"
            " modules would mix their histories of largest values; use 'resident' or another recipe"
        )


def shape_problems(
    config: Config, shape: Mapping[str, Any], *, purpose: Purpose, device: Literal["cpu", "cuda"]
) -> Iterator[str]:
    """Between the layout and a model's `config.json`."""
    if purpose not in TRAINS:
        return
    yield from _cut_model(config, shape)
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


def _cut_model(config: Config, shape: Mapping[str, Any]) -> Iterator[str]:
    """TP cuts heads and MLP, PP deals out layers. What config.json leaves out is not judged."""
    megatron = config.megatron
    names = ("num_attention_heads", "intermediate_size")
    yield from split_problems("megatron.tensor_parallel", megatron.tensor_parallel, shape, names)
    layers, chunks = shape.get("num_hidden_layers"), megatron.pipeline_parallel
    if megatron.virtual_pipeline:
        chunks *= megatron.virtual_pipeline
    if layers and layers < chunks:
        yield (
            f"megatron.pipeline_parallel {megatron.pipeline_parallel} * virtual_pipeline"
            f" {megatron.virtual_pipeline or 1} = {chunks} is more than the model's"
            f" num_hidden_layers {layers}; every model chunk needs a layer, so lower one of them"
        )
    yield from _experts(config, shape)


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
    width = shape.get("moe_intermediate_size") or 0  # null is refused with the file
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
    if (chosen := shape.get("num_experts_per_tok") or 0) > experts:
        yield f"model.path: num_experts_per_tok {chosen} is more than the {experts} experts"
    if shape.get("output_router_logits"):
        yield (
            "model.path: output_router_logits is true, with which Hugging Face adds"
            f" router_aux_loss_coef {shape.get('router_aux_loss_coef')} times a balancing loss;"
            " training here adds none: set it to false in config.json"
        )
