"""The engine computes what `transformers` does, for what only some families have."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.engine.harness import running_engine
from tests.engine.tiny_models import VOCAB, hf_logits, make_model, picked

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("family", ["gemma3_text", "glm4", "glm4_yarn", "qwen3_yarn"])
def test_log_probs_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Of given tokens, in fp32, far enough for every rotation and window to count."""
    model = make_model(tmp_path, family=family)
    tokens = np.random.default_rng(3).integers(3, VOCAB, size=300).astype(np.int32)
    want = picked(hf_logits(model, tokens[:1], tokens[1:]).log_softmax(-1), tokens[1:])
    with running_engine(tmp_path) as engine:
        (found,) = asyncio.run(engine.score_tokens([tokens], [1]))
    assert np.abs(want).mean() > 3.0, "the model says nothing"
    np.testing.assert_allclose(found, want, atol=1e-4)
