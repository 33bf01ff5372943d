"""What is read and refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from herl_megatron.config.schema import Config, DataConfig, ModelConfig
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
