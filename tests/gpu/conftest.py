"""Tests that need a CUDA GPU; without one they are skipped.

NOT RUN YET on any GPU: their tolerances are estimates, for the first run to replace with measured
ones. On a machine with one GPU: `python -m pytest tests/gpu -m gpu`.
"""

from __future__ import annotations

import os
from pathlib import Path

# Ranks are forked from a server that has imported Transformer Engine; its import asks whether there
# is a GPU, and the usual way to ask would leave the driver unusable in every process forked later.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.device import has_cuda


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not has_cuda():
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA GPU"))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy task with a model that GPU kernels take: head size 64, sizes of whole FP8 blocks."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_task(folder, seed=0, train_prompts=32, heldout_prompts=8, sft_rows=64)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    return folder
