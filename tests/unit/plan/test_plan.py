"""`herl plan`: verdicts, suggestions, refusals and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config, MegatronConfig
from herl_megatron.megatron import meta
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.plan.build import find_problems, find_shape, make_plan
from herl_megatron.plan.layouts import Layouts, stages_bytes
from herl_megatron.plan.machines import GIB, Assumptions, Cluster, choose_gpu
from herl_megatron.plan.rank_memory import largest_micro_batch, micro_batches_per_step
from herl_megatron.plan.remedies import Change, cheapest_changes
from tests.unit.config.hub_cache import fill_cache, use_cache

CONFIGS = Path(__file__).parents[3] / "configs"
QWEN_7B = CONFIGS / "qwen2.5_7b_if_8gpu.yaml"
SHAPE = CONFIGS / "shapes/Qwen2.5-7B-Instruct.json"
ONE_NODE = Cluster(choose_gpu("h100-80"), nodes=1, gpus_per_node=8)
PLAIN = ["megatron.tensor_parallel=1", "megatron.data_parallel=8",
         "megatron.sequence_parallel=false", "megatron.recompute=none"]  # fmt: skip


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "240"})
    return done.exit_code, done.output


def test_bytes_of_seven_billion_weights_by_hand() -> None:
    """bf16 weights, fp32 gradients; fp32 main weights and two moments over eight replicas."""
    plan = make_plan(load_config(QWEN_7B, PLAIN), SHAPE, cluster=ONE_NODE, assumed=Assumptions())
    held = plan.ranks[0].held
    n = 7_615_616_512
    assert held["weights"] == pytest.approx(2 * n, rel=1e-6)
    assert held["gradients"] == pytest.approx(4 * n, rel=1e-6)
    assert held["main weights"] == pytest.approx(4 * n / 8, rel=1e-6)
    assert held["moments"] == pytest.approx(8 * n / 8, rel=1e-6)
    rollout = sum(held.values()) + plan.engine.budget_bytes
    assert plan.ranks[0].phases["rollout"] == rollout
    assert plan.ranks[0].phases["train step"] > rollout
    assert not plan.fits


def test_a_reference_model_takes_another_copy() -> None:
    with_kl = load_config(QWEN_7B, [*PLAIN, "algorithm.kl_coef=0.1"])
    plan = make_plan(with_kl, SHAPE, cluster=ONE_NODE, assumed=Assumptions())
    assert plan.ranks[0].held["reference"] == 2 * 7_615_616_512
    assert plan.host["reference"] == 0


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (2048, 2), (2049, 3), (3072, 3)])
def test_micro_batches_are_tokens_over_the_budget_rounded_up(tokens: int, count: int) -> None:
    """32 prompts of 8 rows over 8 replicas are 32 rows; 32 * 1024 tokens to a micro-batch."""
    config = load_config(QWEN_7B, [*PLAIN, "megatron.micro_batch_tokens=32768"])
    assert config.train.prompts_per_optimizer_step * config.rollout.group_size == 256
    assert micro_batches_per_step(config, tokens) == count


def test_a_reference_on_the_host_takes_none_of_the_device() -> None:
    """A copy on each of 8 ranks; on the device, the largest tensor while it arrives (one bucket:
    the embedding, 152064 * 3584 in bf16)."""
    parts = [*PLAIN, "algorithm.kl_coef=0.1", "megatron.reference=host"]
    plan = make_plan(load_config(QWEN_7B, parts), SHAPE, cluster=ONE_NODE, assumed=Assumptions())
    assert "reference" not in plan.ranks[0].held
    assert plan.host["reference"] == 8 * 2 * 7_615_616_512
    without = make_plan(load_config(QWEN_7B, PLAIN), SHAPE, cluster=ONE_NODE, assumed=Assumptions())
    added = plan.ranks[0].phases["log-probs"] - without.ranks[0].phases["log-probs"]
    assert added == 2 * 152_064 * 3584


def changes(overrides: list[str], cluster: Cluster = ONE_NODE) -> list[Change]:
    config = load_config(QWEN_7B, overrides)
    plan = make_plan(config, SHAPE, cluster=cluster, assumed=Assumptions())
    assert not plan.fits
    return cheapest_changes(config, SHAPE, plan=plan, cluster=cluster, assumed=Assumptions())


def test_three_changes_are_found_and_each_fits_when_it_is_applied() -> None:
    found = changes(PLAIN)
    assert len({change.overrides for change in found}) == 3
    for change in found:
        applied = load_config(QWEN_7B, [*PLAIN, *change.overrides])
        again = make_plan(applied, SHAPE, cluster=ONE_NODE, assumed=Assumptions())
        assert again.fits and again.worst.worst == change.plan.worst.worst
    # Cheapest first: those that change no result, on the same GPUs.
    assert [change.changes_results for change in found] == sorted(c.changes_results for c in found)
    assert {change.gpus for change in found} == {8}
    assert not found[0].changes_results
    assert "megatron.tensor_parallel=2" in found[0].overrides  # one GPU cannot hold it, two can


def test_one_screw_is_turned_where_one_is_enough() -> None:
    """All but the engine takes 35.73 of the 75.65 GiB; half of a GPU is 39.82, 0.55 43.80."""
    found = changes(["rollout.gpu_memory_utilization=0.65"])
    assert ("rollout.gpu_memory_utilization=0.5",) in {change.overrides for change in found}
    for change in found:
        assert not change.changes_results


def test_nothing_is_named_where_nothing_can_fit() -> None:
    code, output = run(
        str(QWEN_7B), "rollout.tensor_parallel=4", "rollout.replicas=2", "--gpu", "8_GiB"
    )
    assert code == 1
    assert "nothing was found that fits" in output and "up to 32 GPUs" in output


def layout(config: Config, shape: Path, cluster: Cluster) -> MegatronConfig:
    found = Layouts(shape, Assumptions()).find(config, cluster)
    assert found is not None and found[1].fits
    return found[0]


@pytest.mark.parametrize("virtual", [None, 2])
def test_equal_stages_are_built_once_and_count_as_if_each_were(virtual: int | None) -> None:
    megatron = MegatronConfig(pipeline_parallel=7, virtual_pipeline=virtual, tensor_parallel=2)
    architecture = read_architecture(str(SHAPE))
    each = meta.rank_bytes(architecture, megatron, meta.stage_ranks(megatron))
    assert stages_bytes(architecture, megatron) == each
    assert len({rank.parameters for rank in each}) == 3  # embedding, none, output


def test_conflicts_with_the_machines() -> None:
    a100 = Cluster(choose_gpu("a100-80"), nodes=1, gpus_per_node=4)
    config = load_config(QWEN_7B, ["megatron.tensor_parallel=8", "megatron.fp8=delayed"])
    problems = "\n".join(find_problems(config, SHAPE, a100))
    for part in (
        "tensor_parallel 8 does not divide the model's num_attention_heads 28",
        "DP 4 = 32 ranks, but this machine has 4 GPUs",
        "which a100-80 cannot compute",
    ):
        assert part in problems
    assert "Ray" not in problems  # too few GPUs are said once


@pytest.mark.parametrize(
    ("overrides", "nodes", "problem"),
    [
        (["megatron.tensor_parallel=4", "megatron.data_parallel=3"], 2,
         "megatron.tensor_parallel 4 does not divide the 6 GPUs of a node"),
        (["megatron.data_parallel=6", "rollout.replicas=1", "rollout.tensor_parallel=12"], 2,
         "an engine never spans nodes"),
    ],
)  # fmt: skip
def test_no_group_and_no_engine_crosses_nodes(
    overrides: list[str], nodes: int, problem: str
) -> None:
    """Said by the same function that places a run's processes."""
    cluster = Cluster(choose_gpu("h100-80"), nodes=nodes, gpus_per_node=6)
    config = load_config(QWEN_7B, ["rollout.replicas=6", *overrides])
    assert problem in "\n".join(find_problems(config, SHAPE, cluster))


def test_engines_sleep_while_the_trainer_learns_and_are_awake_else() -> None:
    """As `run.turns` has it: all but the assumed rest is given back between the turns."""
    parts = {}
    for sleep in (0, 2):
        config = load_config(QWEN_7B, [*PLAIN, f"rollout.sleep={sleep}"])
        assumed = Assumptions(sleep_residue_gib=2)
        plan = make_plan(config, SHAPE, cluster=ONE_NODE, assumed=assumed)
        (parts[sleep],) = plan.ranks
    awake = plan.engine.budget_bytes
    learning = {"log-probs", "train step"}
    assert parts[0].phases.keys() > learning
    for phase, size in parts[0].phases.items():
        freed = awake - 2 * GIB if phase in learning else 0
        assert parts[2].phases[phase] == size - freed, phase
        assert parts[2].engine[phase] == awake - freed


def test_engines_that_sample_meanwhile_do_not_sleep() -> None:
    keys = ["rollout.mode=one_step_off", "algorithm.mismatch_weight=true", "rollout.sleep=2"]
    plan = make_plan(load_config(QWEN_7B, [*PLAIN, *keys]), SHAPE, cluster=ONE_NODE,
                     assumed=Assumptions())  # fmt: skip
    assert set(plan.ranks[0].engine.values()) == {plan.engine.budget_bytes}


def test_an_engine_asleep_holds_no_more_than_awake() -> None:
    config = load_config(QWEN_7B, [*PLAIN, "rollout.gpu_memory_utilization=0.01"])
    plan = make_plan(config, SHAPE, cluster=ONE_NODE, assumed=Assumptions(sleep_residue_gib=2))
    assert plan.ranks[0].engine["train step"] == plan.engine.budget_bytes < GIB


def test_weights_are_there_twice_at_the_start() -> None:
    """DDP's buffer is filled from them; nothing of the optimizer is there yet."""
    plan = make_plan(load_config(QWEN_7B, PLAIN), SHAPE, cluster=ONE_NODE, assumed=Assumptions())
    of_weights = plan.ranks[0].phases["start-up"] - plan.engine.budget_bytes
    assert of_weights == pytest.approx((2 + 2 + 4) * 7_615_616_512, rel=1e-6)


def test_the_verdict_says_that_engines_sleep() -> None:
    code, output = run(str(QWEN_7B), "--gpu", "h100-80")
    told = " ".join(output.split())
    assert code == 0
    assert "counted as the run behaves: engines are asleep while the trainer learns" in told
    assert "in train step, engine asleep" in told and "in rollout " in told


def test_no_library_warns_in_a_plan() -> None:
    """In a fresh process: Megatron-Core's imports speak once each."""
    command = [sys.executable, "-m", "herl_megatron.cli", "plan", str(QWEN_7B), "--gpu", "h100-80"]
    env = {**os.environ, "COLUMNS": "200"}
    env.pop("PYTHONWARNINGS", None)
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("cp", "expected"),
    [
        # 6144 + 2048 tokens fill the micro-batch of 8192.
        (1, (8192, 8192, 8192)),
        (4, (2048, 2048, 2048)),
        # Rows are padded to a multiple of 2 * 3 * 2: 8196.
        (3, (2732, 2732, 2732)),
    ],
)
def test_context_parallel_ranks_share_a_micro_batch(
    cp: int, expected: tuple[int, int, int]
) -> None:
    config = load_config(QWEN_7B, ["megatron.tensor_parallel=2", f"megatron.context_parallel={cp}"])
    assert config.megatron.micro_batch_tokens == 8192
    shape = largest_micro_batch(config)
    assert (shape.tokens, shape.longest_row, shape.response_tokens) == expected


def test_rows_too_long_for_one_rank_are_given_to_several() -> None:
    """131,072 tokens in one row: TP 4 with recomputation holds half of that, and TP 8 does not
    divide the 28 heads."""
    long = ["data.max_prompt_tokens=65536", "rollout.max_response_tokens=65536",
            "data.max_experience_tokens=65536", "rollout.max_num_seqs=8",
            "rollout.tensor_parallel=4", "rollout.replicas=2",
            "rollout.gpu_memory_utilization=0.5", "rollout.sleep=0"]  # fmt: skip
    shape = json.loads(SHAPE.read_text()) | {"max_position_embeddings": 262_144}
    config = load_config(QWEN_7B, [*PLAIN, *long])
    with patch("herl_megatron.plan.build.read_shape", return_value=shape):
        found = layout(config, SHAPE, ONE_NODE)
        one = found.model_copy(update={"context_parallel": 1, "data_parallel": 2})
        short = config.model_copy(update={"megatron": one})
        assert not make_plan(short, SHAPE, cluster=ONE_NODE, assumed=Assumptions()).fits
    assert (found.tensor_parallel, found.context_parallel) == (4, 2)


def test_tokens_stay_in_a_node_where_its_gpus_hold_the_experts() -> None:
    """Without TP, 16 ranks of two nodes would have to share them; with TP 2, a node's 8 can."""
    path = CONFIGS / "qwen3_30b_a3b_if_4x8gpu.yaml"
    config = load_config(path, ["megatron.tensor_parallel=1", "megatron.data_parallel=32",
                                "megatron.sequence_parallel=false", "rollout.sleep=0"])  # fmt: skip
    four_nodes = Cluster(choose_gpu("h100-80"), nodes=4, gpus_per_node=8)
    shape = CONFIGS / "shapes/Qwen3-30B-A3B.json"
    assert not make_plan(config, shape, cluster=four_nodes, assumed=Assumptions()).fits
    megatron = layout(config, shape, four_nodes)
    assert (megatron.tensor_parallel, megatron.expert_parallel, megatron.etp) == (2, 8, 1)


def test_short_rows_are_never_cut() -> None:
    """Two of them make a micro-batch, so half of the budget saves what CP 2 would."""
    short = ["data.max_prompt_tokens=1024", "rollout.max_response_tokens=1024"]
    config = load_config(QWEN_7B, [*PLAIN, *short, "megatron.micro_batch_tokens=131072"])
    found = Layouts(SHAPE, Assumptions()).find(config, ONE_NODE)
    assert found is None or found[0].context_parallel == 1


def test_a_recipe_must_be_the_gpus() -> None:
    config = load_config(QWEN_7B, ["megatron.fp8=mxfp8"])
    (problem,) = find_problems(config, SHAPE, ONE_NODE)
    assert "'mxfp8', which h100-80 cannot compute; it has delayed, tensorwise, blockwise" in problem


def test_fp8_is_planned_where_there_is_no_gpu() -> None:
    config = load_config(QWEN_7B, ["megatron.fp8=blockwise"])
    plan = make_plan(config, SHAPE, cluster=ONE_NODE, assumed=Assumptions())
    assert plan.fits


def test_a_machine_with_gpus_counts_in_a_child_process() -> None:
    architecture = read_architecture(str(SHAPE))
    here = meta.rank_bytes(architecture, MegatronConfig(), [0])
    with patch.object(meta, "has_cuda", return_value=True):
        assert meta.rank_bytes(architecture, MegatronConfig(), [0]) == here


def test_the_command_prints_every_assumption_and_succeeds_if_it_fits() -> None:
    code, output = run(str(QWEN_7B), "--gpu", "h100-80", "--rate", "train_mfu=0.5")
    assert code == 0, output
    assert "train_mfu=0.5" in output
    for name in Assumptions().as_dict():
        assert name in output


def test_the_command_fails_with_a_suggestion_if_it_does_not_fit() -> None:
    code, output = run(str(QWEN_7B), *PLAIN, "--gpu", "h100-80")
    assert code == 1
    assert "does not fit" in output
    assert "fits with (each was planned; cheapest first):" in output
    assert "1. megatron.tensor_parallel=2" in output and "3. " in output


def test_an_engine_that_is_too_small_gets_more_of_the_gpu_more_gpus_or_fp8() -> None:
    """11.95 GiB do not hold the 14.2 of the weights; half of them on two GPUs, or FP8's 8, fit."""
    share, tensor_parallel, fp8 = changes(["rollout.gpu_memory_utilization=0.15"])
    single = {share.overrides, tensor_parallel.overrides}
    assert ("rollout.gpu_memory_utilization=0.25",) in single
    assert ("rollout.replicas=4", "rollout.tensor_parallel=2") in single
    assert "rollout.quantization=fp8" in fp8.overrides and fp8.changes_results


def test_json_has_every_number() -> None:
    code, output = run(str(QWEN_7B), "--gpu", "h100-80", "--json")
    said = json.loads(output[output.index("{") :])
    assert code == 0 and said["fits"] is True
    assert said["parameters"] == 7_615_616_512
    assert said["worst"]["phase"] == "parity check"  # engines awake, as in training they are not


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h999"], "--gpu 'h999': one of h100-80"),
        (["--rate", "mfu=1"], "--rate 'mfu=1': no such rate; known:"),
        (["--gpu", "h100-80", "--rate", "train_mfu=fast"], "'fast' is not a number"),
        (["--gpu", "h100-80", "--model-config", "nowhere.json"], "no such file: nowhere.json"),
        (["--gpu", "h100-80", "model.path=models/Other"], "there is no shapes/Other.json"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: list[str], message: str) -> None:
    code, output = run(str(QWEN_7B), *arguments)
    assert code == 2
    assert message in output


def test_a_memory_stands_for_a_gpu() -> None:
    assert choose_gpu("48_GiB").memory_bytes == choose_gpu("48").memory_bytes == 48 * GIB


def test_the_shape_is_that_of_the_folder_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(SHAPE.read_text())
    config = load_config(QWEN_7B, [f"model.path={tmp_path}"])
    assert find_shape(config, near=QWEN_7B) == tmp_path / "config.json"
    assert find_shape(load_config(QWEN_7B), near=QWEN_7B) == SHAPE


def test_the_shape_of_a_name_on_the_hub_is_fetched_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = use_cache(tmp_path / "cache", monkeypatch)
    folder = fill_cache(cache, "org/tiny")
    (folder / "model.safetensors").unlink()
    config = load_config(QWEN_7B, ["model.path=org/tiny"])
    assert find_shape(config, near=QWEN_7B) == folder / "config.json"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = load_config(QWEN_7B, ["model.path=org/other"])
    with pytest.raises(ValueError, match="hf download org/other .*or give its config.json with"):
        find_shape(config, near=QWEN_7B)
