"""What is refused of a Hugging Face folder's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from herl_megatron.models.hf_config import read_architecture
from herl_megatron.models.hf_reader import HFFolder
from tests.toy_copies import copy_toy_task

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    copy_toy_task(folder, seed=0, train_prompts=2, heldout_prompts=2, sft_rows=2)
    return folder / "model"


def with_head(model: Path, folder: Path, head: torch.Tensor) -> HFFolder:
    weights: Mapping[str, torch.Tensor] = load_file(model / "model.safetensors")
    save_file({**weights, HEAD: head}, folder / "model.safetensors")
    (folder / "config.json").write_text((model / "config.json").read_text())
    return HFFolder(folder)


def test_a_tied_head_that_is_stored_and_equal_is_dropped(model: Path, tmp_path: Path) -> None:
    embedding = load_file(model / "model.safetensors")[EMBEDDING]
    folder = with_head(model, tmp_path, embedding.clone())
    folder.check(read_architecture(str(model)))


@pytest.mark.parametrize("what", ["last", "rounded", "rows"])
def test_a_tied_head_that_is_stored_and_differs_is_refused(
    model: Path, tmp_path: Path, what: str
) -> None:
    """vllm-project/vllm#51063: one program reads it, another takes the embedding."""
    head = load_file(model / "model.safetensors")[EMBEDDING].clone()
    if what == "last":
        head[-1, -1] += 1e-3
    elif what == "rounded":
        head = head.bfloat16()
    else:
        head = head[:-1].clone()
    folder = with_head(model, tmp_path, head)
    architecture = read_architecture(str(model))
    with pytest.raises(
        ValueError, match=r"ties the output layer.*set tie_word_embeddings to false"
    ):
        folder.check(architecture)
    with pytest.raises(ValueError, match=r"lm_head\.weight is stored and differs"):
        folder.check_tied_head(tied=architecture.tied)


def test_an_untied_head_is_a_weight_of_its_own(model: Path, tmp_path: Path) -> None:
    embedding = load_file(model / "model.safetensors")[EMBEDDING]
    folder = with_head(model, tmp_path, embedding + 1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    folder.check(read_architecture(str(tmp_path)))
