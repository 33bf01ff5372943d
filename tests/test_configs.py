"""Every file in configs/ loads, is complete and passes the rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from herl_megatron.config.load import known_keys, load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.validate import Purpose, validate
from herl_megatron.data.toy_files import write_toy_task

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_loads_and_passes_the_rules(path: Path, toy: Path, tmp_path: Path) -> None:
    """On the toy model for the CPU files; their paths only exist after earlier commands."""
    purpose: Purpose = "sft" if "_sft_" in path.name else "train"
    assert "_cpu" in path.name, "give files for other machines their own model shape here"
    data = (
        [f"sft.data={toy}/sft.jsonl"]
        if purpose == "sft"
        else [f"data.train={toy}/train.jsonl", f"data.eval={toy}/heldout.jsonl"]
    )
    config = load_config(path, [f"run.dir={tmp_path}", f"model.path={toy}/model", *data])
    validate(config, purpose=purpose, machine=Machine(shared_memory_bytes=64 << 20))


def test_quickstart_trains_what_the_warm_start_exports() -> None:
    sft = load_config(ROOT / "configs/quickstart_sft_cpu.yaml")
    herl = load_config(ROOT / "configs/quickstart_cpu.yaml")
    assert herl.model.path == f"{sft.run.dir}/{sft.run.name}/policy"
    assert sft.run.dir == herl.run.dir
    for section in ("rollout", "hindsight", "algorithm", "eval"):
        assert getattr(sft, section) == getattr(herl, section), section
