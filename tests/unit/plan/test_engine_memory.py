"""Memory of an engine, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.config.schema import Config, DataConfig, EvalConfig, ModelConfig, RolloutConfig
from herl_megatron.gpus import GPUS
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.plan.engine_memory import kv_bytes_per_token, plan_engine, weight_bytes
from herl_megatron.plan.machines import GIB, Assumptions

MODELS = Path(__file__).parents[3] / "configs/shapes"
QWEN_7B = "Qwen2.5-7B-Instruct"


def architecture(name: str) -> Architecture:
    return read_architecture(str(MODELS / f"{name}.json"))


def config(**rollout: object) -> Config:
    return Config(
        model=ModelConfig(path="m"),
        data=DataConfig(max_prompt_tokens=1000, max_experience_tokens=3000),
        rollout=RolloutConfig(max_response_tokens=1000, **rollout),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("name", "tp", "expected"),
    [
        (QWEN_7B, 1, 2 * 28 * 4 * 128 * 2),  # keys and values, layers, heads, size, bf16
        (QWEN_7B, 2, 28 * 4 * 128 * 2),
        (QWEN_7B, 8, 2 * 28 * 1 * 128 * 2),  # four heads over eight GPUs: each still holds one
        ("Qwen3-235B-A22B", 1, 2 * 94 * 4 * 128 * 2),
    ],
)
def test_cache_of_a_token(name: str, tp: int, expected: int) -> None:
    assert kv_bytes_per_token(architecture(name), config(tensor_parallel=tp)) == expected


def test_cache_is_what_weights_leave_of_the_share() -> None:
    asked = config(gpu_memory_utilization=0.5)
    assumed = Assumptions(mean_prompt=0.5, mean_response=0.5, engine_reserve_gib=1.0)
    plan = plan_engine(architecture(QWEN_7B), asked, gpu=GPUS["h100-80"], assumed=assumed)
    assert plan.budget_bytes == 81559 * 2**20 // 2
    assert plan.weight_bytes == 2 * 7_615_616_512
    assert plan.kv_cache_bytes == plan.budget_bytes - plan.weight_bytes - plan.working_bytes - GIB
    assert plan.longest_tokens == 4000
    assert plan.sequences == plan.kv_cache_bytes // (57_344 * 4000)
    assert plan.mean_sequences == 128 == asked.rollout.max_num_seqs  # more would fit


def test_a_longer_evaluation_is_what_the_engine_is_started_for() -> None:
    """Prompts of 1,000 and responses of 3,500; a shorter limit than training's changes nothing."""
    asked = config(gpu_memory_utilization=0.5)
    longest = {}
    for limit in (100, 3500):
        own = asked.model_copy(update={"eval": EvalConfig(max_response_tokens=limit)})
        plan = plan_engine(architecture(QWEN_7B), own, gpu=None, assumed=Assumptions())
        longest[limit] = plan.longest_tokens
    assert longest == {100: 4000, 3500: asked.data.max_prompt_tokens + 3500}


def test_weights_that_do_not_fit_leave_no_sequence() -> None:
    asked = config(gpu_memory_utilization=0.1)
    plan = plan_engine(architecture(QWEN_7B), asked, gpu=GPUS["h100-80"], assumed=Assumptions())
    assert plan.kv_cache_bytes < 0
    assert plan.sequences == plan.mean_sequences == 0


def test_on_the_cpu_the_cache_is_the_configured_one() -> None:
    asked = config(kv_cache_bytes=57_344 * 8000)
    plan = plan_engine(architecture(QWEN_7B), asked, gpu=None, assumed=Assumptions())
    assert (plan.kv_cache_bytes, plan.sequences) == (57_344 * 8000, 2)


def test_fp8_halves_the_matrices_of_the_layers_alone() -> None:
    """Qwen3-30B-A3B: 48 layers of 128 experts, attention and a router, and two vocabularies."""
    matrices = 48 * (128 * 3 * 2048 * 768 + 2 * 2048 * 4096 + 2 * 2048 * 512)
    rest = 2 * 151_936 * 2048 + 48 * (128 * 2048 + 2 * 2048 + 2 * 128) + 2048
    model = architecture("Qwen3-30B-A3B")
    assert matrices + rest == 30_532_122_624
    assert weight_bytes(model, config()) == 2 * (matrices + rest)
    assert weight_bytes(model, config(quantization="fp8")) == matrices + 2 * rest
