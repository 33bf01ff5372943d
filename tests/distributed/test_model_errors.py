"""Folders and architectures that cannot be trained are refused with names and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed import tiny_models
from tests.distributed.harness import RankError, run_ranks

pytestmark = pytest.mark.distributed


def load(rank: int, world_size: int, init_method: str, folder: str, layout: dict[str, Any]) -> None:
    """Build the model of a folder and load it."""
    from herl_megatron.config.schema import MegatronConfig
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.load_weights import load_hf_weights
    from herl_megatron.megatron.model import build_model
    from herl_megatron.megatron.parallel import init_parallel
    from herl_megatron.models.hf_config import read_architecture

    config = MegatronConfig(precision="fp32", timeout_s=60, **layout)
    groups = init_parallel(
        config,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device=choose_device("cpu"),
        seed=0,
    )
    architecture = read_architecture(folder)
    load_hf_weights(build_model(architecture, config, groups), folder, architecture, groups)


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def _add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.o_proj.bias"] = torch.zeros(64)


def _cut(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name][:500].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "1 tensors are missing: model.layers.1.mlp.up_proj.weight"),
        (_add, "1 tensors do not belong .*: model.layers.0.self_attn.o_proj.bias"),
        (_cut, r"model.embed_tokens.weight has shape \(500, 64\) .* asks for \(515, 64\)"),
    ],
)
def test_wrong_tensors_are_named(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, tmp_path: Path
) -> None:
    tiny_models.build("qwen2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RankError, match=f"ValueError: .*{message}"):
        run_ranks(load, 1, str(tmp_path), {})


def test_folder_without_safetensors(tmp_path: Path) -> None:
    tiny_models.config("qwen2").save_pretrained(tmp_path)
    with pytest.raises(RankError, match="holds neither model.safetensors nor"):
        run_ranks(load, 1, str(tmp_path), {})


def test_layout_that_does_not_divide_the_model(tmp_path: Path) -> None:
    tiny_models.config("qwen2").save_pretrained(tmp_path)
    with pytest.raises(RankError, match="num_attention_heads 4 is not divisible by .* 3"):
        run_ranks(load, 3, str(tmp_path), {"tensor_parallel": 3})
    with pytest.raises(RankError, match="num_hidden_layers 4 is less than .* 5"):
        run_ranks(load, 5, str(tmp_path), {"pipeline_parallel": 5})


def die(rank: int, world_size: int, init_method: str) -> None:
    """Rank 1 ends without a word."""
    import os

    if rank == 1:
        os._exit(3)
    torch.ones(1)


def hang(rank: int, world_size: int, init_method: str) -> None:
    """Never return."""
    import time

    time.sleep(60)


def test_harness_reports_a_dead_and_a_stuck_rank() -> None:
    with pytest.raises(RankError, match="rank 1 died with exit code 3"):
        run_ranks(die, 2)
    with pytest.raises(RankError, match=r"ranks \[0\] gave no result in 0.5 s"):
        run_ranks(hang, 1, limit_s=0.5)
