"""Host memory of a node, and what the environment would break."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.load import load_config
from herl_megatron.megatron.meta import RankBytes
from herl_megatron.plan.build import make_plan
from herl_megatron.plan.engine_memory import EnginePlan
from herl_megatron.plan.environment import environment_warnings
from herl_megatron.plan.host import cpu_host_bytes, host_bytes
from herl_megatron.plan.machines import GIB, Assumptions, Cluster, choose_gpu

CONFIGS = Path(__file__).parents[3] / "configs"
QWEN_7B = CONFIGS / "qwen2.5_7b_if_8gpu.yaml"
SHAPE = CONFIGS / "shapes/Qwen2.5-7B-Instruct.json"
RANK = RankBytes(
    rank=0, pp_rank=0, parameters=50, expert_parameters=0, weight_bytes=100, gradient_bytes=0,
    main_weight_bytes=30, moment_bytes=60,
)  # fmt: skip
ENGINE = EnginePlan(
    budget_bytes=0, weight_bytes=1000, working_bytes=0, kv_cache_bytes=0, kv_bytes_per_token=0,
    longest_tokens=0, sequences=1, mean_sequences=1,
)  # fmt: skip


def host(overrides: list[str], *, nodes: int, rank: RankBytes = RANK) -> dict[str, int]:
    config = load_config(QWEN_7B, ["megatron.sequence_parallel=false", *overrides])
    cluster = Cluster(choose_gpu("h100-80"), nodes=nodes, gpus_per_node=8)
    stages = [rank] * config.megatron.pipeline_parallel
    return host_bytes(
        config, stages, ENGINE, cluster, Assumptions(), bucket_bytes=7, transport="shared_memory"
    )


@pytest.mark.parametrize(
    ("layout", "etp", "dense", "expert"),
    [
        ((8, 1, 4, 1), "null", 8, 0),  # all ranks of the first node are first replicas
        ((2, 1, 4, 1), "null", 2, 0),
        ((1, 2, 4, 1), "null", 2, 0),  # one per stage
        ((2, 2, 4, 1), "null", 2, 0),  # a stage per node
        ((1, 1, 8, 4), "null", 1, 4),  # four ranks hold other experts each, then they repeat
        ((4, 1, 2, 2), "null", 4, 8),  # experts are cut by TP too
        ((4, 1, 2, 2), "1", 4, 2),  # experts whole: two ranks hold them all
        ((4, 1, 4, 8), "1", 4, 8),
    ],
)
def test_a_checkpoint_copies_weights_of_first_replicas_and_all_optimizer_shards(
    layout: tuple[int, int, int, int], etp: str, dense: int, expert: int
) -> None:
    """A rank with 100 bytes of weights, 60 of them experts' where there are any, and 30 + 60."""
    tp, pp, dp, ep = layout
    keys = ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel")
    overrides = [f"megatron.{key}={size}" for key, size in zip(keys, layout, strict=True)]
    rank = RankBytes(**{**vars(RANK), "expert_parameters": 30 if ep > 1 else 0})
    found = host(
        [*overrides, f"megatron.expert_tensor_parallel={etp}"], nodes=tp * pp * dp // 8, rank=rank
    )
    of_experts = 60 if ep > 1 else 0
    assert found["checkpoint"] == (100 - of_experts) * dense + of_experts * expert + 8 * 90


def test_engines_of_a_node_leave_their_weights_on_its_host_when_they_sleep() -> None:
    """Eight GPUs a node, however many there are; level 2 keeps no weights, 0 does not sleep."""
    large = ["megatron.tensor_parallel=8", "megatron.data_parallel=2", "rollout.replicas=4",
             "rollout.tensor_parallel=4"]  # fmt: skip
    kept = host([*large, "rollout.sleep=1"], nodes=2)
    assert kept["engines asleep"] == 8 * 1000
    assert kept["weight buckets"] == 2 * 7
    assert host([*large, "rollout.sleep=2"], nodes=2)["engines asleep"] == 0
    assert host([*large, "rollout.sleep=0"], nodes=2)["engines asleep"] == 0
    stays = [*large, "rollout.sleep=1", "rollout.mode=one_step_off"]
    assert host(stays, nodes=2)["engines asleep"] == 0


def test_a_host_that_is_too_small_names_what_fills_it_and_how_to_mend_it() -> None:
    """The reference: eight copies of 14.2 GiB."""
    config = load_config(QWEN_7B, ["megatron.tensor_parallel=1", "megatron.data_parallel=8",
                                   "megatron.sequence_parallel=false", "rollout.sleep=2",
                                   "megatron.reference=host", "algorithm.kl_coef=0.1"])  # fmt: skip
    small = Cluster(choose_gpu("h200-141"), nodes=1, gpus_per_node=8, host_bytes=200 * GIB)
    plan = make_plan(config, SHAPE, cluster=small, assumed=Assumptions())
    assert not plan.host_fits and not plan.fits and plan.only_host_misfits
    (warning,) = (text for text in plan.warnings if "of host memory and has 200" in text)
    assert "most is reference: megatron.reference=resident" in warning
    assert "/dev/shm of each node must hold 1.0 GiB: Ray's objects (" in plan.warnings[0]
    large = Cluster(choose_gpu("h200-141"), nodes=1, gpus_per_node=8, host_bytes=2000 * GIB)
    assert make_plan(config, SHAPE, cluster=large, assumed=Assumptions()).fits


def test_buckets_are_in_shared_memory_or_in_the_memory_of_every_gpu() -> None:
    """Two of the largest, the embedding, 152064 * 3584 in bf16."""
    embedding = 152_064 * 3584 * 2
    cluster = Cluster(choose_gpu("h100-80"), nodes=1, gpus_per_node=8)
    plans = {
        transport: make_plan(
            load_config(QWEN_7B, [f"weight_sync.transport={transport}"]),
            SHAPE, cluster=cluster, assumed=Assumptions(),
        )
        for transport in ("auto", "cuda_ipc", "shared_memory")
    }  # fmt: skip
    by_host, by_gpu = plans["shared_memory"], plans["cuda_ipc"]
    assert plans["auto"].ranks == by_gpu.ranks  # every engine's GPU has a trainer rank
    assert (by_host.host["weight buckets"], by_gpu.host["weight buckets"]) == (2 * embedding, 0)
    assert "weight buckets" not in by_host.ranks[0].held
    assert by_gpu.ranks[0].held["weight buckets"] == 2 * embedding
    for phase, more in (("rollout", 2), ("train step", 2), ("weight sync", 1)):
        difference = by_gpu.ranks[0].phases[phase] - by_host.ranks[0].phases[phase]
        assert difference == more * embedding, phase
    assert by_gpu.seconds["weight sync"] < by_host.seconds["weight sync"]
    alone = load_config(QWEN_7B, ["megatron.data_parallel=2", "weight_sync.transport=cuda_ipc"])
    (problem,) = make_plan(alone, SHAPE, cluster=cluster, assumed=Assumptions()).problems
    assert "needs a trainer rank on every GPU" in problem


@pytest.mark.parametrize(
    ("env", "part"),
    [
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "older ones refuse to sleep"),
        ({"PYTORCH_ALLOC_CONF": "x:1,expandable_segments:True"}, "PYTORCH_ALLOC_CONF has"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "every kernel waits"),
        ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "memory pools"),
        ({"NCCL_P2P_DISABLE": "1"}, "goes through host memory"),
        ({"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, "CUDA_DEVICE_MAX_CONNECTIONS=8 is not used"),
    ],
)
def test_the_environment(env: dict[str, str], part: str) -> None:
    config = load_config(QWEN_7B, ["megatron.tensor_parallel=2"])
    (warning,) = environment_warnings(config, env)
    assert part in warning


def test_an_environment_without_such_settings_is_fine() -> None:
    config = load_config(QWEN_7B)
    harmless = {"CUDA_LAUNCH_BLOCKING": "0", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "PATH": "/bin"}
    assert not list(environment_warnings(config, harmless))


def test_the_plan_looks_at_the_environment() -> None:
    cluster = Cluster(choose_gpu("h100-80"), nodes=1, gpus_per_node=8)
    with patch.dict("os.environ", {"CUDA_LAUNCH_BLOCKING": "1"}):
        plan = make_plan(load_config(QWEN_7B), SHAPE, cluster=cluster, assumed=Assumptions())
    assert any("every kernel waits" in text for text in plan.warnings)
    assert plan.fits


def test_no_other_layout_is_suggested_where_the_host_is_too_small() -> None:
    options = [str(QWEN_7B), "--gpu", "h100-80", "--host-gib", "60"]
    done = CliRunner().invoke(app, ["plan", *options], env={"COLUMNS": "240"})
    assert done.exit_code == 1
    assert "the host memory of a node is too small" in done.output
    assert "a node needs" in done.output and "fits with" not in done.output


@pytest.mark.parametrize(("tensor_parallel", "engines", "processes"), [(1, 2, 3), (4, 8, 11)])
def test_on_the_cpu_an_engine_is_one_process_or_its_ranks_and_one_more(
    tensor_parallel: int, engines: int, processes: int
) -> None:
    """One trainer rank, two engines."""
    small = ["rollout.replicas=2", f"rollout.tensor_parallel={tensor_parallel}"]
    config = load_config(CONFIGS / "quickstart_cpu.yaml", [*small, "megatron.tensor_parallel=1"])
    assumed = Assumptions()
    engine = replace(ENGINE, budget_bytes=1000)
    found = cpu_host_bytes(config, [], engine, assumed, bucket_bytes=7)
    assert found["engines"] == engines * 1000
    assert found["processes"] == int(processes * assumed.process_cpu_gib * GIB)
