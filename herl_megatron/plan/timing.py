"""An estimate of one step's time from stated rates. No accuracy is claimed.

Floating point operations are those of `models.flops`; a backward pass takes twice as many as a
forward pass, full recomputation once more. A pipeline of P stages, V chunks and m micro-batches
idles for (P - 1) / (m V) of its time (Narayanan et al. 2021, arXiv 2104.04473, section 2.2), and
goes at the pace of its longest chunk.
Decoding reads all weights and the cache of all running sequences for each token.
"""

from __future__ import annotations

import math

from herl_megatron.config.schema import Config, MegatronConfig, RolloutConfig
from herl_megatron.device import Transport
from herl_megatron.gpus import Gpu
from herl_megatron.hindsight.known_methods import open_method
from herl_megatron.hindsight.method import HindsightMethod
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.flops import forward_flops_per_token, model_parameters
from herl_megatron.models.stages import chunk_sizes
from herl_megatron.plan.engine_memory import EnginePlan, mean_tokens
from herl_megatron.plan.judge import step_responses
from herl_megatron.plan.machines import Assumptions
from herl_megatron.run.measure import log_prob_passes

_BYTES = {"fp32": 4, "bf16": 2}


def step_seconds(
    config: Config,
    architecture: Architecture,
    engine: EnginePlan,
    *,
    gpu: Gpu,
    micro_batches: int,
    assumed: Assumptions,
    transport: Transport = "shared_memory",
    judge_calls: float = 0.0,
) -> dict[str, float]:
    """Seconds of each phase of a step; scoring is what is left of it beside generation.

    judge_calls: of one step (`plan.judge`).
    """
    train, megatron = config.train, config.megatron
    rows = train.prompts_per_step * config.rollout.group_size
    row_tokens = mean_tokens(config, assumed)
    method = open_method(config.hindsight)
    joined = 0 if method is None else train.prompts_per_step * _rows_added(method, config.rollout)
    forward = (rows + joined) * row_tokens * forward_flops_per_token(architecture, row_tokens)
    peak = megatron.world_size * gpu.bf16_tflops * 1e12
    if megatron.fp8:
        peak *= assumed.fp8_gain
    if architecture.experts is not None:
        peak *= assumed.experts_mfu
    idle = (megatron.pipeline_parallel - 1) / (micro_batches * (megatron.virtual_pipeline or 1))
    forward *= _unevenness(architecture.num_layers, megatron)
    passes = log_prob_passes(train, config.algorithm)
    backward = 4 if megatron.recompute == "full" else 3
    weights = model_parameters(architecture) * _BYTES[megatron.precision]
    in_gpus = transport == "cuda_ipc"
    sync_rate = assumed.sync_ipc_gb_per_s if in_gpus else assumed.sync_gb_per_s
    samples = step_responses(config, assumed)
    scoring = samples * assumed.score_s / config.scoring.workers
    scoring += judge_calls * assumed.judge_s / config.judge.concurrency
    return {
        "rollout": _rollout_s(config, architecture, engine, samples, gpu=gpu, assumed=assumed),
        "scoring": scoring * (1 - assumed.scoring_hidden),
        "log-probs": passes * forward * (1 + idle) / (peak * assumed.forward_mfu),
        "train": backward * forward * (1 + idle) / (peak * assumed.train_mfu),
        "weight sync": assumed.sync_fixed_s + weights / (sync_rate * 1e9),
    }


def _rows_added(method: HindsightMethod, rollout: RolloutConfig) -> int:
    added = method.rows_added
    return method.most_revisions(rollout.group_size) if added is None else added


def _unevenness(num_layers: int, megatron: MegatronConfig) -> float:
    """Layers of the longest model chunk over those of the mean one."""
    chunks = megatron.pipeline_parallel * (megatron.virtual_pipeline or 1)
    return max(chunk_sizes(num_layers, chunks)) * chunks / num_layers


def _rollout_s(
    config: Config,
    architecture: Architecture,
    engine: EnginePlan,
    samples: float,
    *,
    gpu: Gpu,
    assumed: Assumptions,
) -> float:
    rollout = config.rollout
    of_engine = samples / rollout.replicas
    running = min(engine.mean_sequences, of_engine)
    if running < 1:
        return math.inf
    row_tokens = mean_tokens(config, assumed)
    prompt_tokens = assumed.mean_prompt * config.data.max_prompt_tokens
    responses = row_tokens - prompt_tokens
    read = engine.weight_bytes + running * engine.kv_bytes_per_token * row_tokens
    decode_s = read / (gpu.memory_gb_per_s * 1e9 * assumed.decode_bandwidth)
    decode_s += assumed.decode_overhead_ms / 1e3
    # The last sequence may start late; that tail is in neither of the two bounds.
    longest = assumed.longest_response * rollout.max_response_tokens
    steps = max(of_engine * responses / running, longest)
    # The prefix cache computes a group's prompt once.
    prompts = of_engine / rollout.group_size * prompt_tokens
    prefill = prompts * forward_flops_per_token(architecture, prompt_tokens)
    reach = rollout.tensor_parallel * gpu.bf16_tflops * 1e12 * assumed.forward_mfu
    if architecture.experts is not None:
        reach *= assumed.experts_mfu
    return steps * decode_s + prefill / reach
