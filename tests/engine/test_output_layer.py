"""Logits in float32 in an engine whose other numbers are bf16."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.harness import running_engine
from tests.engine.tiny_models import VOCAB, hf_logits, make_model

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("fp32", [False, True])
def test_logits_are_on_the_grid_of_bf16_or_are_not(tmp_path: Path, fp32: bool) -> None:
    """bf16 numbers between 1 and 4 are multiples of 1/128. So are differences of such logits, which
    are differences of the log-probs of tokens that follow the same prompt."""
    model = make_model(tmp_path / "model", dtype=torch.bfloat16)
    prompt = np.random.default_rng(5).integers(3, VOCAB, 24)
    logits = hf_logits(model, prompt, prompt[:1])[0]
    tokens = [token for token in range(VOCAB) if 1.1 < abs(float(logits[token])) < 3.9]
    assert len(tokens) > 30
    with running_engine(tmp_path / "model", dtype="bfloat16", fp32_output_layer=fp32) as engine:
        sequences = [np.append(prompt, token) for token in tokens]
        scored = asyncio.run(engine.score_tokens(sequences, [len(prompt)] * len(tokens)))
    log_probs = np.concatenate(scored).astype(np.float64)
    steps = (log_probs - log_probs[0]) * 128
    off_grid = np.abs(steps - steps.round()) > 1e-3
    assert off_grid.mean() > 0.9 if fp32 else not off_grid.any()
