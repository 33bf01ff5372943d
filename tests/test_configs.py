"""Every file in configs/ loads, is complete and passes the rules."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from omegaconf import OmegaConf

from herl_megatron.config.load import known_keys, load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.config.validate import Purpose, validate
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.megatron.meta import RankBytes, rank_bytes, stage_ranks
from herl_megatron.plan.build import find_shape, make_plan
from herl_megatron.plan.cluster import Assumptions
from herl_megatron.plan.command import choose_cluster
from herl_megatron.plan.engine import model_parameters
from herl_megatron.weight_sync.hf_config import read_architecture

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
ON_CPU = [path for path in FILES if "_cpu" in path.name]
ON_GPU = [path for path in FILES if path not in ON_CPU]
SHAPES = sorted((ROOT / "configs/models").glob("*.json"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_task(folder, seed=0, train_prompts=4, heldout_prompts=2, sft_rows=4)
    return folder


def test_there_are_configurations() -> None:
    assert {"quickstart_cpu.yaml", "quickstart_sft_cpu.yaml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_key_is_written_out(path: Path) -> None:
    """One full file per run: reading it needs no other file, and a new default changes nothing."""
    values = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(path.read_text())))
    assert isinstance(values, dict)
    given = {section for section in values} | {
        f"{section}.{key}" for section, keys in values.items() for key in keys
    }
    assert set(known_keys()) - given == set()


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


@cache
def stage_bytes(model: str, megatron: str) -> tuple[RankBytes, ...]:
    """Of the stages' first ranks; many files share a layout."""
    config = MegatronConfig.model_validate_json(megatron)
    shape = ROOT / "configs/models" / f"{Path(model).name}.json"
    return rank_bytes(read_architecture(str(shape)), config, stage_ranks(config))


PARAMETERS = {
    "Llama-3.2-3B-Instruct": 3_212_749_824,
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
