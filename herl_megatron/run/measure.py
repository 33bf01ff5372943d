"""What a step took of the machines: rates, memory, the engines' caches and queues."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil

from herl_megatron.config.schema import (
    AlgorithmConfig,
    MegatronConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
)
from herl_megatron.engine import EngineUsage
from herl_megatron.gpus import GPUS, find_gpu, read_gpus
from herl_megatron.models.flops import forward_flops_per_token
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.observability.peaks import peak_metric
from herl_megatron.observability.throughput import Throughput
from herl_megatron.types import TrainBatch

_GIB = 1 << 30


class MeasuredTrainer(Protocol):
    """What is asked of `TrainerGroup`."""

    async def memory_bytes(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """See `TrainerGroup.memory_bytes`."""
        ...


class MeasuredEngine(Protocol):
    """What is asked of a `RolloutEngine`."""

    async def usage(self) -> EngineUsage:
        """See `RolloutEngine.usage`."""
        ...


def log_prob_passes(train: TrainConfig, algorithm: AlgorithmConfig) -> int:
    """Passes over each row that only compute log-probs: the old policy's and the reference's."""
    return (train.optimizer_steps_per_step > 1) + (algorithm.kl_coef > 0)


def throughput(
    model: ModelConfig,
    megatron: MegatronConfig,
    rollout: RolloutConfig,
    *,
    log_prob_passes: int,
    device: str,
    gpu_table: str = "",
) -> Throughput:
    """What turns the run's seconds into rates; device: torch's name of the trainer's GPUs;
    gpu_table: `cluster.gpu_table`.

    Raises:
        ValueError: `model.path` holds no config that Megatron-Core can express, or the table
            cannot be read.
    """
    architecture = read_architecture(model.path)
    gpu = find_gpu(device, read_gpus(Path(gpu_table)) if gpu_table else GPUS)
    return Throughput(
        trainer_devices=megatron.world_size,
        engine_devices=rollout.replicas * rollout.tensor_parallel,
        forward_flops=partial(forward_flops_per_token, architecture),
        log_prob_passes=log_prob_passes,
        peak_flops=gpu.bf16_tflops * 1e12 if gpu else None,
    )


@dataclass(frozen=True)
class Measure:
    """Looks at the parts of a training run between two steps."""

    throughput: Throughput
    trainer: MeasuredTrainer
    engines: Sequence[MeasuredEngine]

    async def step(self, values: Mapping[str, float], batch: TrainBatch) -> dict[str, float]:
        """`perf/...` of the step that `values` are of, `engine/...` and `memory/...` at most.

        Device memory is the most since the last call: on the trainer's side of all phases, and of
        each by its name; sampling and weight sync on the engines'.
        """
        asking = asyncio.gather(*(engine.usage() for engine in self.engines))
        host, peaks = await self.trainer.memory_bytes()
        usages = await asking
        trained = [row for row in batch.rows if row.in_loss]
        rates = self.throughput.metrics(
            values, rows=len(trained), row_tokens=sum(row.tokens for row in trained)
        )
        memory = {
            "memory/trainer_host_gib": host,
            "memory/trainer_device_gib": max(device for _, device in peaks.values()),
            "memory/engine_host_gib": max(usage.host_bytes for usage in usages),
            "memory/engine_device_gib": max(usage.device_bytes for usage in usages),
            "memory/driver_host_gib": psutil.Process().memory_info().rss,
        }
        for phase, (most_host, most_device) in peaks.items():
            memory[peak_metric("host", phase)] = most_host
            memory[peak_metric("device", phase)] = most_device
        return (
            rates
            | {name: size / _GIB for name, size in memory.items() if size}
            | {
                "engine/kv_cache": max(usage.kv_cache for usage in usages),
                "engine/running": float(sum(usage.running for usage in usages)),
                "engine/waiting": float(sum(usage.waiting for usage in usages)),
            }
        )
