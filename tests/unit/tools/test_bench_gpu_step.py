"""The FLOPs behind the bench's MFU, against PyTorch's own counter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from tools.bench.bench_gpu_step import step_flops, write_config


def test_flops_of_a_step_are_those_that_pytorch_counts(tmp_path: Path) -> None:
    """Eager attention computes the whole square, twice what causal attention needs: per layer (2),
    head (2) and sequence (3), two products of 2 * 48 * 48 * 64, three times."""
    write_config(tmp_path, "tiny", 48)
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.randint(0, 1000, (3, 48))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    whole_square = 2 * 2 * 3 * 3 * 2 * (2 * 48 * 48 * 64)
    # The rotary angles' outer product: positions (48) times frequencies (32).
    angles = counter.get_total_flops() - (
        step_flops("tiny", sequences=3, length=48) + whole_square / 2
    )
    assert 0 <= angles <= 2 * 3 * 48 * 32
