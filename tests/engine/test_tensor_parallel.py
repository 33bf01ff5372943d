"""An engine over two worker processes computes what one process, and the HF model, compute."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from transformers import PreTrainedModel

from herl_megatron.config.schema import ParityConfig
from herl_megatron.rollout.vllm.tp_workers import start_failure
from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from herl_megatron.types import Completion
from herl_megatron.weight_sync.bucket_folder import BucketFolder
from herl_megatron.weight_sync.parity import ParityError, ParityGate, make_probes
from herl_megatron.weight_sync.parity_limits import SAME_PROGRAM, ParityLimits, tolerance_for
from herl_megatron.weight_sync.sync import sync_weights
from tests.engine.harness import running_engine
from tests.engine.test_parity import HFTrainer
from tests.engine.tiny_models import VOCAB, hf_logits, make_model, make_requests, picked
from tests.limits import HANG_S

pytestmark = pytest.mark.engine
# Longer than vLLM's CPU block of 128 tokens, so that prompts are found in the prefix cache.
SAMPLED = make_requests(6, temperature=0.8, max_tokens=20, shared_prompt_tokens=300, prefix="s")
GREEDY = make_requests(3, temperature=0.0, max_tokens=20, shared_prompt_tokens=300, prefix="g")
TOLERANCE = tolerance_for(ParityConfig(), "fp32", "fp32")


@pytest.fixture
def buckets() -> Iterator[BucketFolder]:
    folder = BucketFolder("tp-test")
    yield folder
    folder.close()


def check_against_hf(model: PreTrainedModel, completions: list[Completion]) -> None:
    """Log-probs of every token, and the greedy choice."""
    for request, got in zip([*SAMPLED, *GREEDY], completions, strict=True):
        logits = hf_logits(model, request.prompt_token_ids, got.token_ids)
        scaled = logits / (request.sampling.temperature or 1.0)
        if request.sampling.temperature:  # vLLM reports 0 for the only token of a greedy choice
            expected = picked(scaled.log_softmax(-1), got.token_ids)
            np.testing.assert_allclose(got.log_probs, expected, atol=1e-5)
        else:
            assert got.token_ids.tolist() == logits.argmax(-1).tolist()


def keep_old_weights(worker: Any) -> None:
    """In a worker process: TP rank 1 takes every bucket and loads none of it."""
    if worker.rank == 1:
        worker.weight_transfer_engine.model.load_weights = lambda weights: None


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "Worker_TP" in " ".join(p.cmdline())]


def test_two_workers_compute_the_synced_weights(tmp_path: Path, buckets: BucketFolder) -> None:
    model = make_model(tmp_path / "model", tied=True)
    trainer = HFTrainer(model)

    async def scenario(engine: VLLMEngine) -> list[Completion]:
        await sync_weights(trainer, [engine], 0, paths=buckets.paths, timeout_s=60)
        check_against_hf(model, await engine.generate([*SAMPLED, *GREEDY]))
        trainer.train()
        await sync_weights(trainer, [engine], 1, paths=buckets.paths, timeout_s=60)
        together = await engine.generate([*SAMPLED, *GREEDY])
        check_against_hf(model, together)
        (alone,) = await engine.generate(SAMPLED[2:3])
        assert alone.token_ids.tolist() == together[2].token_ids.tolist()
        assert alone.log_probs.tobytes() == together[2].log_probs.tobytes()
        model.save_pretrained(tmp_path / "trained")
        await one_stale_worker(engine)
        await one_dead_worker(engine)
        return together

    async def one_stale_worker(engine: VLLMEngine) -> None:
        draw = np.random.default_rng(1)
        prompts = [draw.integers(3, VOCAB, size).astype(np.int32) for size in (20, 33)]
        probes = make_probes(prompts, max_model_tokens=512)
        gate = ParityGate(trainer, [engine], probes=probes, tolerance=TOLERANCE, every=1, seed=0)
        assert (await gate.check(1))["parity/max"] < TOLERANCE.floors.max / 3
        floors = TOLERANCE.floors
        same = ParityLimits(SAME_PROGRAM * floors.mean, SAME_PROGRAM * floors.max)
        assert gate.limits == (floors, floors, same, same)
        await engine._call(lambda llm: llm.collective_rpc(keep_old_weights))
        trainer.train()
        await sync_weights(trainer, [engine], 2, paths=buckets.paths, timeout_s=60)
        with pytest.raises(ParityError):
            await gate.check(2)

    async def one_dead_worker(engine: VLLMEngine) -> None:
        """A hang shows; after a death every call fails with the reason, and no worker outlives the
        engine."""
        first, second = workers()
        endless = asyncio.create_task(
            engine.generate(make_requests(2, max_tokens=400, prefix="endless"))
        )
        await engine.generate(make_requests(1, max_tokens=2, prefix="short"))  # so it has begun
        second.suspend()  # one that hangs is seen by who watches the engine
        async with asyncio.timeout(30):
            while engine.stalled_s() < 1:
                await asyncio.sleep(0.1)
        second.kill()
        for call in (endless, engine.generate(SAMPLED), engine.start_weight_update()):
            with pytest.raises(RuntimeError, match=r"worker processes .* ended.* 1 \(exit code -9"):
                await asyncio.wait_for(call, 30)
        assert psutil.wait_procs([first, second], timeout=HANG_S)[1] == []

    with running_engine(tmp_path / "model", random_weights=True, tensor_parallel=2) as engine:
        two = asyncio.run(scenario(engine))
    assert workers() == []

    with running_engine(tmp_path / "trained") as engine:
        one = asyncio.run(engine.generate([*SAMPLED, *GREEDY]))
    for left, right in zip(one, two, strict=True):
        assert left.token_ids.tolist() == right.token_ids.tolist()
        np.testing.assert_allclose(left.log_probs, right.log_probs, atol=1e-5)


def test_heads_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    with pytest.raises(ValueError, match=r"attention heads \(2\) must be divisible .*\(4\)"):
        with running_engine(tmp_path / "model", tensor_parallel=4):
            pass


def test_the_reason_of_a_worker_that_did_not_start_is_found_in_the_log(tmp_path: Path) -> None:
    lines = [
        "(Worker_TP1 pid=7) ERROR 11-21 08:36:53 [multiproc_executor.py:953] Traceback (most ...",
        "(Worker_TP1 pid=7) ERROR 11-21 08:36:53 [multiproc_executor.py:953] MemoryError: 3 GiB",
        "(EngineCore pid=6) ERROR 11-21 08:36:54 [core.py:1] Exception: worker failed. Error: none",
    ]
    log = tmp_path / "worker.out"
    log.write_text("\n".join(lines))
    kept = os.dup(1)
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
        error = start_failure(Exception("see the stack trace"))
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert f"did not start: MemoryError: 3 GiB (log: {log})" in str(error)
