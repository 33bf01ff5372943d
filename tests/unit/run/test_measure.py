"""What is asked of trainer and engines after a step, put together by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from herl_megatron.config.schema import (
    AlgorithmConfig,
    MegatronConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
)
from herl_megatron.engine import EngineUsage
from herl_megatron.gpus import find_gpu
from herl_megatron.observability.metrics import is_measured
from herl_megatron.observability.throughput import Throughput
from herl_megatron.run.measure import Measure, log_prob_passes, throughput
from herl_megatron.types import TrainBatch, TrainRow
from tests.toy_copies import copy_toy_task

GIB = 1 << 30


class Trainer:
    def __init__(self, device: int) -> None:
        self._device = device

    async def memory_bytes(self) -> tuple[int, dict[str, tuple[int, int]]]:
        return 3 * GIB, {"train step": (5 * GIB, self._device), "log-probs": (4 * GIB, 0)}


class Engine:
    def __init__(self, usage: EngineUsage) -> None:
        self._usage = usage

    async def usage(self) -> EngineUsage:
        return self._usage


def row(context: int, response: int, weight: float) -> TrainRow:
    tokens = np.ones(context, np.int32), np.ones(response, np.int32)
    return TrainRow(
        "p", *tokens, np.zeros(response, np.float32), reward=0.0, advantage=1.0, weight=weight
    )


async def test_the_fullest_cache_all_queues_and_rows_that_are_trained_on() -> None:
    """Two rows of 10 and 20 tokens count, the masked one of 1000 does not: 30 tokens in 2 s."""
    engines = [
        Engine(EngineUsage(kv_cache=0.5, running=8, waiting=3, host_bytes=GIB)),
        Engine(EngineUsage(kv_cache=0.25, running=6, waiting=1, host_bytes=2 * GIB)),
    ]
    batch = TrainBatch(((row(6, 4, 1.0), row(1, 999, 0.0)), (row(10, 10, 1.0),)))
    measure = Measure(Throughput(1, 2, lambda tokens: tokens * 1e12, 0, None), Trainer(0), engines)
    found = await measure.step({"time/train_s": 2.0}, batch)
    driver = found.pop("memory/driver_host_gib")
    assert 0 < driver < 64
    assert found == pytest.approx(
        {
            "perf/train_tokens_per_s": 15.0,
            "perf/train_tokens_per_s_per_device": 15.0,
            # 3 passes, 30 tokens in rows of 15 on average, in 2 s
            "perf/train_tflops_per_s_per_device": 3 * 30 * 15 / 2,
            "memory/trainer_host_gib": 3.0,
            "memory/trainer_host/train_step_gib": 5.0,
            "memory/trainer_host/log_probs_gib": 4.0,
            "memory/engine_host_gib": 2.0,
            "engine/kv_cache": 0.5,
            "engine/running": 14.0,
            "engine/waiting": 4.0,
        }
    )
    assert all(map(is_measured, found))


async def test_device_memory_is_there_where_there_is_a_gpu() -> None:
    measure = Measure(
        Throughput(1, 1, lambda tokens: 0.0, 0, None),
        Trainer(5 * GIB),
        [Engine(EngineUsage(device_bytes=7 * GIB))],
    )
    found = await measure.step({}, TrainBatch(()))
    assert found["memory/trainer_device_gib"] == 5.0
    assert found["memory/trainer_device/train_step_gib"] == 5.0
    assert "memory/trainer_device/log_probs_gib" not in found  # it held nothing there
    assert found["memory/engine_device_gib"] == 7.0


@pytest.mark.parametrize(("steps", "kl", "passes"), [(1, 0.0, 0), (2, 0.0, 1), (2, 0.1, 2)])
def test_passes_that_only_compute_log_probs(steps: int, kl: float, passes: int) -> None:
    train = TrainConfig(prompts_per_step=4 * steps, prompts_per_optimizer_step=4)
    assert log_prob_passes(train, AlgorithmConfig(kl_coef=kl)) == passes


def test_a_known_gpu_has_a_peak_and_every_rank_and_engine_process_counts(tmp_path: Path) -> None:
    """H100 SXM: 989 TFLOP/s dense. A model of one layer with nothing but an output matrix of
    4 x 8, two projections of heads and an MLP; its operations are the sum of 2 per weight."""
    shape = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 8,
        "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 4,
        "num_key_value_heads": 1, "intermediate_size": 8, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    found = throughput(
        ModelConfig(path=str(tmp_path)),
        MegatronConfig(tensor_parallel=2, data_parallel=3),
        RolloutConfig(replicas=4, tensor_parallel=2),
        log_prob_passes=1,
        device="NVIDIA H100 80GB HBM3",
    )
    assert (found.trainer_devices, found.engine_devices) == (6, 8)
    assert found.peak_flops == pytest.approx(989e12)
    # Output 32; q, k, v, o 16 each; MLP 3 x 32; norms 4 + 4 + 4, and 4 + 4 of q and k.
    weights = 32 + 64 + 96 + 12 + 8
    assert found.forward_flops(0) == 2 * weights
    assert found.forward_flops(10) == 2 * weights + 4 * 4 * 10 / 2
    assert found.log_prob_passes == 1


def test_a_users_table_has_the_peak_of_a_gpu_that_herl_does_not_know(tmp_path: Path) -> None:
    """`herl plan --gpus FILE` knew it, and the run of the plan had no MFU."""
    copy_toy_task(tmp_path, seed=0, train_prompts=1, heldout_prompts=1, sft_rows=1)
    table = tmp_path / "gpus.yaml"
    table.write_text(
        "mine: {memory_mib: 65536, capability: '9.0', bf16_tflops: 800, memory_gb_per_s: 3000,"
        " devices: [MY GPU 64GB]}\n"
    )
    peaks = [
        throughput(
            ModelConfig(path=f"{tmp_path}/model"), MegatronConfig(), RolloutConfig(),
            log_prob_passes=0, device="MY GPU 64GB", gpu_table=given,
        ).peak_flops
        for given in ("", str(table))
    ]  # fmt: skip
    assert peaks == [None, pytest.approx(800e12)]


def test_an_unknown_device_has_no_peak() -> None:
    assert find_gpu("NVIDIA Something New") is None and find_gpu("") is None
