"""What is read and refused before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from herl_megatron.config.schema import (
    Config,
    DataConfig,
    HindsightConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
)
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.run.inputs import load_inputs


def test_evaluation_refuses_a_stored_head_that_the_config_ties(tmp_path: Path) -> None:
    """vllm-project/vllm#51063: training drops it, an engine may read it."""
    write_toy_task(tmp_path, seed=0, train_prompts=2, heldout_prompts=2, sft_rows=2)
    config = Config(
        model=ModelConfig(path=str(tmp_path / "model")),
        data=DataConfig(eval=str(tmp_path / "heldout.jsonl")),
    )
    assert len(load_inputs(config, training=False).eval) == 2
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight is stored and differs"):
        load_inputs(config, training=False)


def test_the_source_of_own_code_is_one_of_the_runs_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy_task(tmp_path, seed=0, train_prompts=8, heldout_prompts=2, sft_rows=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = Config(
        model=ModelConfig(path=str(tmp_path / "model")),
        data=DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "heldout.jsonl")),
        rollout=RolloutConfig(function="own_inputs:talk"),
        hindsight=HindsightConfig(method="own_inputs:Mine"),
        train=TrainConfig(prompts_per_step=4, prompts_per_optimizer_step=4),
    )

    def found(source: str, *, training: bool = True) -> dict[str, str]:
        (tmp_path / "own_inputs.py").write_text(source)
        sys.modules.pop("own_inputs", None)
        prints = load_inputs(config, training=training).fingerprints
        return {name: value for name, value in prints.items() if "own_inputs" in name}

    source = (
        "from herl_megatron.hindsight.method import HindsightMethod\n"
        "async def talk(talk): await talk.generate()\n"
        "class Mine(HindsightMethod): pass\n"
    )
    before = found(source)
    assert set(before) == {
        "source of rollout.function own_inputs:talk",
        "source of hindsight.method own_inputs:Mine",
    }
    changed = found(source + "# another line\n")
    assert all(changed[name] != value for name, value in before.items())
    assert found(source) == before
    # An evaluation has no hindsight.
    assert set(found(source, training=False)) == {"source of rollout.function own_inputs:talk"}
