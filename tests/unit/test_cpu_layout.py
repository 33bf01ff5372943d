"""Replicas, threads and bf16 on CPUs of several sizes."""

from __future__ import annotations

import pytest

from herl_megatron.config.load import load_config
from herl_megatron.cpu_layout import bf16_unit, in_words, small_model_layout

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cores", "memory_gib", "replicas", "threads"),
    [
        (1.5, 24, 1, 1),  # a container's quota
        (2, 24, 2, 1),
        (3, 24, 2, 1),
        (4, 14, 2, 2),  # four replicas would take 26 GiB
        (4, 12, 1, 4),
        (16, 64, 8, 2),
        (64, 256, 8, 8),
        (2, 1, 1, 2),
    ],
)
def test_replicas_fit_cores_and_memory(
    cores: float, memory_gib: int, replicas: int, threads: int
) -> None:
    layout = small_model_layout(cores, memory_gib * GIB)
    said = in_words(layout)
    assert said == (
        f"megatron.tensor_parallel=1 megatron.data_parallel={replicas}"
        f" rollout.replicas={replicas} cluster.threads_per_rank={threads}"
    )
    config = load_config("configs/smollm2_135m_unstated_cpu.yaml", said.split())
    assert config.train.prompts_per_optimizer_step % config.megatron.data_parallel == 0


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("flags : fpu avx512_bf16 amx_bf16 amx_tile", "AMX"),
        ("flags : fpu avx512f avx512_bf16", "AVX-512"),
        ("flags : fpu avx2", ""),
        ("", ""),
    ],
)
def test_what_multiplies_bf16(flags: str, unit: str) -> None:
    assert bf16_unit(flags) == unit
