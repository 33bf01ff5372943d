"""Bytes per rank and phase of a run.

Policy, gradients, optimizer and a resident reference model stay where they are for the whole run;
a phase adds what it needs while it lasts. An engine counts in every phase: what it gives back when
it sleeps (`rollout.sleep`) was not measured on a GPU, so that is a second number beside the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from herl_megatron.batching.schedule import length_multiple, padded_length
from herl_megatron.config.schema import Config
from herl_megatron.device import Transport, scratch_bytes
from herl_megatron.megatron.meta import RankBytes
from herl_megatron.megatron.precision import compute_dtype
from herl_megatron.plan.activations import ActivationModel, MicroBatchShape, chunk_layers
from herl_megatron.plan.engine import EnginePlan
from herl_megatron.weight_sync.hf_names import Architecture
from herl_megatron.weight_sync.plan import plan_buckets


@dataclass(frozen=True)
class RankPlan:
    """One trainer rank, an engine beside it where there are enough.

    held: what stays, by name; phases: total bytes in each phase, `held` and the engine included;
    asleep: the phases in which the engine sleeps, by `rollout.sleep`, with an assumed rest of it.
    """

    ranks: str
    pp_rank: int
    held: Mapping[str, int]
    activations: int
    working: int
    phases: Mapping[str, int]
    asleep: Mapping[str, int]

    @property
    def worst(self) -> tuple[str, int]:
        """The phase that needs most, and how much, were the engine to keep all it may take."""
        return max(self.phases.items(), key=lambda item: item[1])

    @property
    def worst_asleep(self) -> tuple[str, int]:
        """The same if a sleeping engine gives back what is assumed."""
        return max({**self.phases, **self.asleep}.items(), key=lambda item: item[1])


def largest_micro_batch(config: Config) -> MicroBatchShape:
    """What a CP rank holds of a micro-batch at its budget, or of one row that is longer.

    Every token counts as response, which is more than there can be by the shortest prompts.
    """
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if config.hindsight.enabled and config.hindsight.train_context == "experience":
        prompt = max(config.data.max_prompt_tokens, config.data.max_experience_tokens)
        longest = prompt + config.rollout.max_response_tokens
    longest = padded_length(longest, length_multiple(config.megatron))
    tokens = max(config.megatron.micro_batch_tokens, longest)
    return MicroBatchShape(tokens, longest, tokens).share(config.megatron.context_parallel)


def micro_batches_per_step(config: Config, mean_tokens: float) -> int:
    """Micro-batches of one DP rank in one optimizer step, at rows of `mean_tokens`."""
    rows = config.train.prompts_per_optimizer_step * config.rollout.group_size
    tokens = rows * mean_tokens / config.megatron.data_parallel
    return max(1, math.ceil(tokens / config.megatron.micro_batch_tokens))


def engines_sleep(config: Config) -> bool:
    """Whether the engines sleep while the trainer learns (`cluster.turns`)."""
    return config.rollout.sleep > 0 and config.rollout.mode != "one_step_off"


def largest_bucket_bytes(config: Config, architecture: Architecture) -> int:
    """The largest bucket of a weight sync, which one tensor alone may exceed."""
    buckets = plan_buckets(
        architecture,
        config.megatron,
        bucket_bytes=config.weight_sync.bucket_bytes,
        dtype=compute_dtype(config.megatron),
    )
    return max(bucket.num_bytes for bucket in buckets)


def plan_ranks(
    config: Config,
    architecture: Architecture,
    ranks: Sequence[RankBytes],
    engine: EnginePlan,
    *,
    on_gpu: bool,
    micro_batches: int,
    sleep_residue_bytes: int,
    transport: Transport,
) -> tuple[RankPlan, ...]:
    """One plan per pipeline stage; `ranks` are the stages' first ranks.

    sleep_residue_bytes: what a sleeping engine is assumed to hold.
    """
    model = ActivationModel(architecture, config.megatron, fused=on_gpu)
    shape = largest_micro_batch(config)
    largest = largest_bucket_bytes(config, architecture)
    per_stage = config.megatron.stage_ranks
    freed = engine.budget_bytes - sleep_residue_bytes if on_gpu and engines_sleep(config) else 0
    return tuple(
        _plan_rank(
            config,
            model,
            rank,
            engine,
            shape=shape,
            on_gpu=on_gpu,
            micro_batches=micro_batches,
            bucket_bytes=largest,
            freed_bytes=freed,
            transport=transport,
            name=f"{rank.rank}-{rank.rank + per_stage - 1}" if per_stage > 1 else str(rank.rank),
        )
        for rank in ranks
    )


def _plan_rank(
    config: Config,
    model: ActivationModel,
    rank: RankBytes,
    engine: EnginePlan,
    *,
    shape: MicroBatchShape,
    on_gpu: bool,
    micro_batches: int,
    bucket_bytes: int,
    freed_bytes: int,
    transport: Transport,
    name: str,
) -> RankPlan:
    held = {
        "weights": rank.weight_bytes,
        "gradients": rank.gradient_bytes,
        "main weights": rank.main_weight_bytes,
        "moments": rank.moment_bytes,
    }
    if config.algorithm.kl_coef and config.megatron.reference == "resident":
        held["reference"] = rank.parameters * model.element_bytes
    synced = 2 * bucket_bytes
    if transport == "cuda_ipc":  # two buffers for the whole run, beside what is being gathered
        held["weight buckets"] = 2 * bucket_bytes
        synced = bucket_bytes
    last = rank.pp_rank == config.megatron.pipeline_parallel - 1
    scratch = scratch_bytes(torch.device("cuda" if on_gpu else "cpu"))
    layer = chunk_layers(model.architecture, config.megatron, rank.pp_rank)[0][:1]
    one_layer = max(model.layer_bytes(number, shape) for number in layer)
    activations = model.peak_bytes(rank.pp_rank, shape, micro_batches)
    head = model.head_working_bytes(backward=True, scratch_bytes=scratch) if last else 0
    # Gradients of one layer's activations, while the layer's own are still there.
    working = max(head, one_layer)
    forward = one_layer + model.layer_input_bytes(shape)
    if last:
        forward += model.head_working_bytes(backward=False, scratch_bytes=scratch)
    if config.algorithm.kl_coef and config.megatron.reference == "host":
        forward += bucket_bytes  # no parameter that arrives from the host is larger
    # On the CPU an engine is another process, which `host` counts.
    always = sum(held.values()) + (engine.budget_bytes if on_gpu else 0)
    phases = {
        "rollout": always,
        "log-probs": always + forward,
        "train step": always + activations + working,
        "weight sync": always + synced,
    }
    learning = ("log-probs", "train step") if freed_bytes > 0 else ()
    return RankPlan(
        ranks=name,
        pp_rank=rank.pp_rank,
        held=held,
        activations=activations,
        working=working,
        phases=phases,
        asleep={phase: phases[phase] - freed_bytes for phase in learning},
    )
