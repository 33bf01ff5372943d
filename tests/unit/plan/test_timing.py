"""The estimate of a step's time: operations by hand, and how times follow the rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config
from herl_megatron.gpus import GPUS
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.flops import active_parameters, forward_flops_per_token
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.plan.engine_memory import plan_engine
from herl_megatron.plan.machines import Assumptions
from herl_megatron.plan.timing import step_seconds

ROOT = Path(__file__).parents[3]
H100 = GPUS["h100-80"]


def architecture(name: str) -> Architecture:
    return read_architecture(str(ROOT / f"configs/shapes/{name}.json"))


def seconds(
    changes: dict[str, float] | None = None,
    *,
    keys: tuple[str, ...] = (),
    judge_calls: float = 0.0,
    **megatron: object,
) -> dict[str, float]:
    """Of one 7B step on eight GPUs."""
    config: Config = load_config(ROOT / "configs/qwen2.5_7b_if_8gpu.yaml", list(keys))
    config = config.model_copy(update={"megatron": config.megatron.model_copy(update=megatron)})
    assumed = replace(Assumptions(), **(changes or {}))
    model = architecture("Qwen2.5-7B-Instruct")
    engine = plan_engine(model, config, gpu=H100, assumed=assumed)
    return step_seconds(
        config, model, engine, gpu=H100, micro_batches=10, assumed=assumed, judge_calls=judge_calls
    )


def test_a_union_of_rollouts_and_revisions_is_more_to_train_on() -> None:
    """Groups of 8 that grow by all of up to 8 revisions are twice the rows; by 4 a half more."""
    union = ("hindsight.accept=all", "hindsight.replace=append", "hindsight.replace_top_n=null")
    rows = [seconds(keys=k)["train"] for k in ((), union, (*union, "hindsight.max_experiences=4"))]
    assert rows == pytest.approx([rows[0], 2 * rows[0], 1.5 * rows[0]])


def test_weights_that_a_token_meets() -> None:
    # The embedding is looked up; Qwen3-30B-A3B meets 8 of 128 experts in each of 48 layers.
    dense = 7_615_616_512 - 152_064 * 3584
    assert active_parameters(architecture("Qwen2.5-7B-Instruct")) == dense
    experts = 48 * (128 - 8) * 3 * 2048 * 768
    sparse = 30_532_122_624 - 151_936 * 2048 - experts
    assert active_parameters(architecture("Qwen3-30B-A3B")) == sparse
    assert active_parameters(architecture("Qwen3-4B-Instruct-2507")) == 4_022_468_096  # tied


def test_operations_of_a_token() -> None:
    # Per layer and earlier token: q k and the sum over v, 2 * 28 heads * 128 each; half are seen.
    attention = 28 * 4 * 28 * 128 * 2000 / 2
    weights = 2 * (7_615_616_512 - 152_064 * 3584)
    found = forward_flops_per_token(architecture("Qwen2.5-7B-Instruct"), 2000)
    assert found == weights + attention


def test_training_time_by_hand() -> None:
    """512 rows of 0.25 * 6144 + 0.5 * 2048 tokens, four passes with recomputation."""
    tokens = 512 * 2560
    operations = 4 * tokens * forward_flops_per_token(architecture("Qwen2.5-7B-Instruct"), 2560)
    assert seconds()["train"] == pytest.approx(operations / (8 * 989e12 * 0.35))


def test_times_follow_their_causes() -> None:
    usual = seconds()
    assert seconds({"train_mfu": 0.7})["train"] == pytest.approx(usual["train"] / 2)
    assert seconds(recompute="none")["train"] == pytest.approx(usual["train"] * 3 / 4)
    # A pipeline of 2 with 10 micro-batches idles 1/10 of its time; half the DP, the same GPUs.
    piped = seconds(pipeline_parallel=2, data_parallel=2)
    assert piped["train"] == pytest.approx(usual["train"] * 1.1)
    assert seconds({"decode_bandwidth": 0.3})["rollout"] > usual["rollout"]
    assert seconds({"sync_fixed_s": 3.0})["weight sync"] == pytest.approx(usual["weight sync"] + 2)


def test_replays_are_trained_on_and_revisions_are_sampled() -> None:
    """Two replays in a group of 8 rows; without hindsight neither."""
    plain, replayed, revised = (
        seconds(keys=(key,))
        for key in ("hindsight.enabled=false", "hindsight.method=replay", "hindsight.alpha=0.05")
    )
    assert replayed["train"] == pytest.approx(plain["train"] * 10 / 8)
    assert replayed["rollout"] == plain["rollout"] < revised["rollout"]
    assert revised["train"] == plain["train"]


def test_every_call_of_the_judge_takes_its_time() -> None:
    rules, judged = seconds()["scoring"], seconds(judge_calls=640)["scoring"]
    # 640 calls of 4 s, 64 of them at a time; a twentieth is not hidden by the generation.
    assert judged - rules == pytest.approx(640 * 4 / 64 * 0.05)


def test_experts_reach_less_of_the_peak() -> None:
    """The same work of the same ranks, at the assumed share of a dense model's speed."""
    config = load_config(ROOT / "configs/qwen3_30b_a3b_if_4x8gpu.yaml")
    model = architecture("Qwen3-30B-A3B")

    def train_s(experts_mfu: float) -> float:
        assumed = Assumptions(experts_mfu=experts_mfu)
        engine = plan_engine(model, config, gpu=H100, assumed=assumed)
        times = step_seconds(config, model, engine, gpu=H100, micro_batches=5, assumed=assumed)
        return times["train"]

    assert train_s(0.25) == pytest.approx(4 * train_s(1.0))
    dense = seconds({"experts_mfu": 0.25})
    assert dense == seconds({"experts_mfu": 1.0})
