"""Bytes per rank and phase of a run.

Policy, gradients, optimizer and a resident reference model stay where they are for the whole run;
a phase adds what it needs while it lasts. An engine counts as it behaves (`run.turns`): awake
while it samples, takes weights and is compared with the trainer, and where `rollout.sleep` says so
asleep while the trainer learns. What it still holds then is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from herl_megatron.batching.shards import length_multiple, padded_length
from herl_megatron.config.schema import Config, MegatronConfig
from herl_megatron.device import Transport, scratch_bytes
from herl_megatron.megatron.meta import RankBytes
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.dtypes import compute_dtype
from herl_megatron.plan.activations import ActivationModel, MicroBatchShape, chunk_layers
from herl_megatron.plan.engine_memory import EnginePlan
from herl_megatron.weight_sync.buckets import plan_buckets

LEARNING = ("log-probs", "train step")
"""The phases between `Turns.to_trainer` and `Turns.to_engines`."""


@dataclass(frozen=True)
class RankPlan:
    """One trainer rank, an engine beside it where there are enough.

    held: what stays, by name; engine: what the engine beside it holds in each phase; phases: total
    bytes in each phase, `held` and the engine included.
    """

    ranks: str
    pp_rank: int
    held: Mapping[str, int]
    activations: int
    working: int
    engine: Mapping[str, int]
    phases: Mapping[str, int]

    @property
    def worst(self) -> tuple[str, int]:
        """The phase that needs most, and how much."""
        return max(self.phases.items(), key=lambda item: item[1])


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
    """Whether the engines sleep while the trainer learns (`run.turns`)."""
    return config.rollout.sleep > 0 and config.rollout.mode != "one_step_off"


def largest_bucket_bytes(config: Config, architecture: Architecture) -> int:
    """The largest bucket of a weight sync, which one tensor alone may exceed."""
    megatron = config.megatron
    # All that a bucket depends on; a search makes many plans that differ in other things.
    cut = MegatronConfig(
        pipeline_parallel=megatron.pipeline_parallel,
        virtual_pipeline=megatron.virtual_pipeline,
        precision=megatron.precision,
    )
    return _largest_bucket(architecture, cut, config.weight_sync.bucket_bytes)


@lru_cache(maxsize=256)
def _largest_bucket(architecture: Architecture, megatron: MegatronConfig, bucket_bytes: int) -> int:
    buckets = plan_buckets(
        architecture, megatron, bucket_bytes=bucket_bytes, dtype=compute_dtype(megatron)
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
    model = ActivationModel(
        architecture,
        config.megatron,
        fused=on_gpu,
        fp32_logits=config.model.fp32_output_layer,
    )
    shape = largest_micro_batch(config)
    largest = largest_bucket_bytes(config, architecture)
    per_stage = config.megatron.stage_ranks
    # On the CPU an engine is another process, which `host` counts.
    awake = engine.budget_bytes if on_gpu else 0
    learning = min(awake, sleep_residue_bytes) if engines_sleep(config) else awake
    terms = _Terms(shape, on_gpu, micro_batches, largest, awake, learning, transport)
    return tuple(
        _plan_rank(
            config,
            model,
            rank,
            terms,
            ranks=f"{rank.rank}-{rank.rank + per_stage - 1}" if per_stage > 1 else str(rank.rank),
        )
        for rank in ranks
    )


@dataclass(frozen=True)
class _Terms:
    """What all ranks of a plan share: the largest micro-batch and bucket, and the engine awake and
    while the trainer learns."""

    shape: MicroBatchShape
    on_gpu: bool
    micro_batches: int
    bucket_bytes: int
    awake_bytes: int
    learning_bytes: int
    transport: Transport


def _plan_rank(
    config: Config, model: ActivationModel, rank: RankBytes, terms: _Terms, *, ranks: str
) -> RankPlan:
    shape, bucket_bytes = terms.shape, terms.bucket_bytes
    held = {
        "weights": rank.weight_bytes,
        "gradients": rank.gradient_bytes,
        "main weights": rank.main_weight_bytes,
        "moments": rank.moment_bytes,
    }
    if config.algorithm.kl_coef and config.megatron.reference == "resident":
        held["reference"] = rank.parameters * model.element_bytes
    synced = 2 * bucket_bytes
    if (
        terms.transport == "cuda_ipc"
    ):  # two buffers for the whole run, beside what is being gathered
        held["weight buckets"] = 2 * bucket_bytes
        synced = bucket_bytes
    last = rank.pp_rank == config.megatron.pipeline_parallel - 1
    scratch = scratch_bytes(torch.device("cuda" if terms.on_gpu else "cpu"))
    layer = chunk_layers(model.architecture, config.megatron, rank.pp_rank)[0][:1]
    one_layer = max(model.layer_bytes(number, shape) for number in layer)
    activations = model.peak_bytes(rank.pp_rank, shape, terms.micro_batches)
    head = model.head_working_bytes(backward=True, scratch_bytes=scratch) if last else 0
    # Gradients of one layer's activations, while the layer's own are still there.
    working = max(head, one_layer)
    forward = one_layer + model.layer_input_bytes(shape)
    if last:
        forward += model.head_working_bytes(backward=False, scratch_bytes=scratch)
    reference = 0
    if config.algorithm.kl_coef and config.megatron.reference == "host":
        reference = bucket_bytes  # no parameter that arrives from the host is larger
    added = {
        "rollout": 0,
        "log-probs": forward + reference,
        "train step": activations + working,
        "weight sync": synced,
    }
    if config.parity.every:
        added["parity check"] = forward
    engine = dict.fromkeys(added, terms.awake_bytes) | dict.fromkeys(LEARNING, terms.learning_bytes)
    always = sum(held.values())
    # Megatron-Core's DDP copies the weights into its buffer before the first copy goes; the
    # optimizer comes after it, the engine beside it.
    phases = {"start-up": 2 * rank.weight_bytes + rank.gradient_bytes + terms.awake_bytes}
    engine["start-up"] = terms.awake_bytes
    return RankPlan(
        ranks=ranks,
        pp_rank=rank.pp_rank,
        held=held,
        activations=activations,
        working=working,
        engine=engine,
        phases=phases | {name: always + engine[name] + size for name, size in added.items()},
    )
