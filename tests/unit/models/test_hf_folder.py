"""Publishing a model folder: complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from herl_megatron.data.chat import ChatTokenizer
from herl_megatron.files.run_files import own_policy_files
from herl_megatron.models.hf_folder import (
    WrittenShards,
    finish_export,
    shard_name,
    start_export,
)
from tests.unit.data.small_tokenizers import byte_level, save


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2", "dtype": "float32"}')
    save(folder, byte_level(), eos_token="<|endoftext|>")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (folder / "other").mkdir()
    (folder / "model.safetensors").write_bytes(b"old weights")
    (folder / "pytorch_model.bin").write_bytes(b"old weights")
    return folder


def _write(staging: Path, index: int, tensors: dict[str, torch.Tensor]) -> WrittenShards:
    name = shard_name(index, 2)
    save_file(tensors, staging / name)
    return WrittenShards((name,), 2, "bfloat16")


def test_folder_holds_index_config_and_tokenizer(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    staging = start_export(folder)
    stages = [
        _write(staging, 1, {"b": torch.ones(3, dtype=torch.bfloat16)}),
        _write(staging, 0, {"a": torch.ones(2, 2, dtype=torch.bfloat16)}),
    ]
    assert not folder.exists()
    finish_export(staging, folder, stages=stages, source=source)
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert names == [
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "herl_export.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == list(ChatTokenizer(str(source)).end_token_ids) and len(ends) == 2
    assert sorted(own_policy_files(folder)) == sorted(folder / name for name in names)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 14},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        },
    }
    assert json.loads((folder / "config.json").read_text()) == {
        "model_type": "qwen2",
        "dtype": "bfloat16",
    }
    assert not staging.exists()


def test_a_missing_stage_publishes_nothing(source: Path, tmp_path: Path) -> None:
    staging = start_export(tmp_path / "policy")
    stages = [_write(staging, 0, {"a": torch.ones(2)})]
    with pytest.raises(ValueError, match="1 weight files were written, not 2"):
        finish_export(staging, tmp_path / "policy", stages=stages, source=source)
    assert not (tmp_path / "policy").exists()


def test_a_tensor_written_twice_is_refused(source: Path, tmp_path: Path) -> None:
    staging = start_export(tmp_path / "policy")
    stages = [_write(staging, index, {"a": torch.ones(2)}) for index in range(2)]
    with pytest.raises(ValueError, match="a is in both model-00001"):
        finish_export(staging, tmp_path / "policy", stages=stages, source=source)


def test_an_existing_folder_is_kept_and_a_killed_export_is_not(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    with pytest.raises(ValueError, match="policy exists"):
        start_export(tmp_path / "policy")
    left = start_export(tmp_path / "other")
    (left / "half.safetensors").write_bytes(b"")
    assert list(start_export(tmp_path / "other").iterdir()) == []
