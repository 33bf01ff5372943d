"""The gate on the real engine: equal weights pass, a bucket left out or a stale cache is caught.

The trainer's side is the Hugging Face model, so that nothing is shared with what is compared. The
limits are those that the gate gives itself after the engine, which has read the folder by vLLM's
own loader, was compared before any sync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from herl_megatron.config.schema import ParityConfig, Precision
from herl_megatron.engine import Bucket
from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from herl_megatron.types import FloatArray, TokenRow
from herl_megatron.weight_sync.bucket_folder import BucketFolder
from herl_megatron.weight_sync.parity import ParityError, ParityGate, make_probes
from herl_megatron.weight_sync.parity_limits import SAME_PROGRAM, tolerance_for
from herl_megatron.weight_sync.sync import sync_weights
from herl_megatron.weight_sync.transport import write_bucket
from tests.engine.harness import running_engine
from tests.engine.tiny_models import VOCAB, hf_logits, make_model, picked

pytestmark = pytest.mark.engine
TENSORS_PER_BUCKET = 3


class HFTrainer:
    """Trains by moving every weight a little; sends its tensors in buckets.

    replay: number of a bucket that goes out as it was in the sync before.
    """

    def __init__(self, model: PreTrainedModel, *, change: float = 0.01) -> None:
        """change: what `train` adds, as a share of each tensor's own spread."""
        self._change = change
        self._model = model
        self._sent: list[list[tuple[str, torch.Tensor]]] = []
        self._draw = torch.Generator().manual_seed(3)
        self.replay = -1

    def train(self) -> None:
        """Add noise to every weight."""
        with torch.no_grad():
            for parameter in self._model.parameters():
                noise = torch.randn(parameter.shape, generator=self._draw)
                parameter.add_(noise * self._change * (parameter.std() + 0.01))

    async def log_probs(self, rows: Sequence[TokenRow]) -> list[FloatArray]:
        """Log-softmax of the model's logits at the responses."""
        found = []
        for row in rows:
            logits = hf_logits(self._model, row.context_token_ids, row.response_token_ids)
            found.append(picked(logits.log_softmax(-1), row.response_token_ids))
        return found

    def bucket_plan(self) -> list[Bucket]:
        count = -(-len(self._tensors()) // TENSORS_PER_BUCKET)
        return [Bucket(path="", num_bytes=0, tensors=()) for _ in range(count)]

    async def write_bucket(self, index: int, path: str) -> Bucket:
        begin = index * TENSORS_PER_BUCKET
        tensors = self._tensors()[begin : begin + TENSORS_PER_BUCKET]
        if index == self.replay:
            tensors = self._sent[index]
        else:
            self._sent[index : index + 1] = [[(name, t.clone()) for name, t in tensors]]
        return write_bucket(path, tensors)

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, p.detach()) for name, p in self._model.named_parameters()]


async def keep_old_cache(engine: VLLMEngine) -> None:
    """From now on the engine says that it reset its prefix cache, and does not.

    What the last check left there goes first, as rollouts would have displaced it.
    """

    def suppress(llm: Any) -> None:
        assert llm.reset_prefix_cache()
        llm.reset_prefix_cache = lambda: True

    await engine._call(suppress)


async def check_all(
    engine: VLLMEngine, trainer: HFTrainer, paths: tuple[str, str], precision: Precision
) -> None:
    draw = np.random.default_rng(1)
    prompts = [draw.integers(3, VOCAB, size).astype(np.int32) for size in (20, 33, 2, 60)]
    gate = ParityGate(
        trainer,
        [engine],
        probes=make_probes(prompts, max_model_tokens=512),
        tolerance=tolerance_for(ParityConfig(), precision),
        every=1,
        seed=0,
    )

    async def sync_and_check(version: int) -> dict[str, float]:
        await gate.prime(version)
        await sync_weights(trainer, [engine], version, paths=paths, timeout_s=60)
        return await gate.check(version)

    await gate.measure_noise()
    bounds = tolerance_for(ParityConfig(), precision)
    least = [bounds.floors.mean * share for share in (1, 1, SAME_PROGRAM, SAME_PROGRAM)]
    for floor, limits in zip(least, gate.limits, strict=True):
        assert floor <= limits.mean < bounds.caps.mean
    for version in (0, 1):
        metrics = await sync_and_check(version)
        # Synced weights differ by what the loaded ones did, not by anything more.
        assert metrics["parity/of_limit"] < 0.75, metrics
        # all prompt tokens but the first of each, and four samples of 32 tokens
        assert metrics["parity/tokens"] == 19 + 32 + 1 + 59 + 4 * 32
        trainer.train()

    buckets = range(len(trainer.bucket_plan())) if precision == "fp32" else (0, 2, 8)
    await replayed_buckets(trainer, sync_and_check, buckets)

    trainer.replay = -1
    metrics = await sync_and_check(100)
    assert metrics["parity/of_limit"] < 0.75, metrics

    await keep_old_cache(engine)
    trainer.train()
    with pytest.raises(ParityError, match="prefix cache was not reset") as caught:
        await sync_and_check(101)
    assert caught.value.metrics["parity/of_limit"] > 2


async def replayed_buckets(
    trainer: HFTrainer,
    sync_and_check: Callable[[int], Awaitable[dict[str, float]]],
    buckets: Sequence[int],
) -> None:
    """Whichever of these buckets stays as it was in the sync before, the gate sees it."""
    for index in buckets:
        trainer.train()
        trainer.replay = index
        with pytest.raises(ParityError, match="a weight bucket was not sent") as caught:
            await sync_and_check(2 + index)
        error = caught.value
        assert error.version == 2 + index
        for part in (
            f"weight version {2 + index} the log-probs of engine 0 (it serves version {2 + index})",
            "limits are 2 x the noise",
            f"mean {error.metrics['parity/mean']:.2e}",
            f"max {error.metrics['parity/max']:.2e}",
        ):
            assert part in str(error)
        trainer.replay = -1
        await sync_and_check(50 + index)


@pytest.mark.parametrize(
    ("precision", "change"),
    # In bf16 a step of one percent is as large as the rounding, which nobody can tell apart; nor
    # can they a bucket of norms and small biases after a larger one.
    [("fp32", 0.01), ("bf16", 0.2)],
)
def test_gate(tmp_path: Path, precision: Precision, change: float) -> None:
    model = make_model(tmp_path / "model", tied=False)
    dtype = "float32" if precision == "fp32" else "bfloat16"
    buckets = BucketFolder("parity-test")
    try:
        with running_engine(tmp_path / "model", dtype=dtype) as engine:
            trainer = HFTrainer(model, change=change)
            asyncio.run(check_all(engine, trainer, buckets.paths, precision))
    finally:
        buckets.close()
