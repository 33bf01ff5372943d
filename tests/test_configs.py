"""Every run that configs/ ships loads to what it was, passes the rules and fits where it says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from herl_megatron.config.explain import show
from herl_megatron.config.load import load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.purpose import Purpose
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.config.validate import validate
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.megatron.meta import RankBytes, rank_bytes, stage_ranks
from herl_megatron.models.flops import model_parameters
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.plan.build import find_shape, make_plan
from herl_megatron.plan.command import choose_cluster
from herl_megatron.plan.machines import Assumptions

ROOT = Path(__file__).parents[1]
PARTS = ("models", "tasks", "scale", "presets", "methods", "benchmarks")
"""Folders of files that a run is composed of."""
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in PARTS)
GOLDEN = ROOT / "tests/golden/configs"
ON_CPU = [path for path in FILES if "_cpu" in path.name]
ON_GPU = [path for path in FILES if path not in ON_CPU]
SHAPES = sorted((ROOT / "configs/shapes").glob("*.json"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_task(folder, seed=0, train_prompts=4, heldout_prompts=2, sft_rows=4)
    return folder


def test_there_are_configurations() -> None:
    assert {"quickstart_cpu.yaml", "quickstart_sft_cpu.yaml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_run_is_what_it_was(path: Path) -> None:
    """A new default, or a change of a file that others extend, cannot change a run unseen.

    Mean it? `herl config show FILE --all > tests/golden/configs/NAME.yaml`
    """
    golden = GOLDEN / path.relative_to(ROOT / "configs")
    assert show(load_config(path), everything=True) == golden.read_text(encoding="utf-8")


def test_there_is_no_golden_file_of_nothing() -> None:
    names = {path.relative_to(GOLDEN) for path in GOLDEN.rglob("*.yaml")}
    assert names == {path.relative_to(ROOT / "configs") for path in FILES}


def test_a_run_composed_on_the_command_line_is_the_shipped_one() -> None:
    parts = [f"models/qwen2.5_7b.yaml tasks/{task}.yaml scale/8gpu_tp2.yaml" for task in ("if",)]
    for text in parts:
        composed = load_config([ROOT / "configs" / name for name in text.split()])
        shipped = load_config(ROOT / "configs/qwen2.5_7b_if_8gpu.yaml")
        assert composed.run.name == "qwen2.5_7b_if_8gpu_tp2"
        run = composed.run.model_copy(update={"name": shipped.run.name})
        assert composed.model_copy(update={"run": run}) == shipped


def test_configurations_are_short() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "configs").rglob("*.yaml"))
    assert lines <= 900


@pytest.mark.parametrize("path", ON_CPU, ids=lambda path: path.name)
def test_loads_and_passes_the_rules(path: Path, toy: Path, tmp_path: Path) -> None:
    """On the toy model for the CPU files; their paths only exist after earlier commands."""
    purpose: Purpose = "sft" if "_sft_" in path.name else "train"
    data = (
        [f"sft.data={toy}/sft.jsonl"]
        if purpose == "sft"
        else [f"data.train={toy}/train.jsonl", f"data.eval={toy}/heldout.jsonl"]
    )
    config = load_config(path, [f"run.dir={tmp_path}", f"model.path={toy}/model", *data])
    validate(config, purpose=purpose, machine=Machine(shared_memory_bytes=64 << 20))


@pytest.mark.parametrize("path", ON_GPU, ids=lambda path: path.name)
def test_plans_on_the_machines_that_it_names(path: Path) -> None:
    """`herl plan` finds the shape beside the file, breaks no rule, and everything fits."""
    text = path.read_text()
    command = re.search(r"^# Plan: herl plan (\S+) --gpu (\S+)$", text, flags=re.MULTILINE)
    assert command and ROOT / command.group(1) == path, "the comment must state its own plan"
    config = load_config(path)
    cluster = choose_cluster(config, command.group(2), gpus_per_node=8, host_gib=0)
    assert cluster is not None
    plan = make_plan(
        config,
        find_shape(config, near=path),
        cluster=cluster,
        assumed=Assumptions(),
        ranks=stage_bytes(config.model.path, config.megatron.model_dump_json()),
    )
    assert plan.problems == ()
    assert plan.fits, f"{plan.worst.worst} of {plan.gpu_bytes}"


@pytest.mark.parametrize("task", ["if", "medical"])
@pytest.mark.parametrize("preset", ["herl", "released", "paper"])
def test_a_preset_on_top_of_a_task_breaks_no_rule(preset: str, task: str) -> None:
    parts = ("models/qwen3_4b", f"tasks/{task}", "scale/8gpu", f"presets/{preset}")
    config = load_config([ROOT / f"configs/{part}.yaml" for part in parts])
    cluster = choose_cluster(config, "h100-80", gpus_per_node=8, host_gib=0)
    assert cluster is not None
    plan = make_plan(
        config,
        find_shape(config, near=ROOT / "configs/models/qwen3_4b.yaml"),
        cluster=cluster,
        assumed=Assumptions(),
        ranks=stage_bytes(config.model.path, config.megatron.model_dump_json()),
    )
    assert plan.problems == ()
    kl_coef = {"if": 0.0, "medical": 0.001}[task]
    assert (config.hindsight.prompt_style == "rubric", config.algorithm.kl_coef) == (
        task == "medical", kl_coef
    )  # fmt: skip


@cache
def stage_bytes(model: str, megatron: str) -> tuple[RankBytes, ...]:
    """Of the stages' first ranks; many files share a layout."""
    config = MegatronConfig.model_validate_json(megatron)
    shape = ROOT / "configs/shapes" / f"{Path(model).name}.json"
    return rank_bytes(read_architecture(str(shape)), config, stage_ranks(config))


PARAMETERS = {
    "Llama-3.2-3B-Instruct": 3_212_749_824,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
}
"""As published with the models."""


def test_shapes_have_the_published_parameters() -> None:
    """Counted by Transformers' own model of each shape, and by ours from the HF names."""
    assert {path.stem for path in SHAPES} == set(PARAMETERS)
    for path in SHAPES:
        config = transformers.AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        assert model.num_parameters() == PARAMETERS[path.stem], path.stem
        assert model_parameters(read_architecture(str(path))) == PARAMETERS[path.stem], path.stem


def test_quickstart_trains_what_the_warm_start_exports() -> None:
    sft = load_config(ROOT / "configs/quickstart_sft_cpu.yaml")
    herl = load_config(ROOT / "configs/quickstart_cpu.yaml")
    assert herl.model.path == f"{sft.run.dir}/{sft.run.name}/policy"
    assert sft.run.dir == herl.run.dir
    for section in ("rollout", "hindsight", "algorithm", "eval"):
        assert getattr(sft, section) == getattr(herl, section), section
