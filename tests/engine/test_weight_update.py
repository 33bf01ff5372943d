"""Weight updates: afterwards the engine equals, bit for bit, one started from the new files."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from herl_megatron.engine import Bucket
from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from herl_megatron.types import Completion
from herl_megatron.weight_sync.bucket_folder import BucketFolder
from herl_megatron.weight_sync.sync import sync_weights
from herl_megatron.weight_sync.transport import write_bucket
from tests.engine.harness import running_engine
from tests.engine.tiny_models import make_model, make_requests

pytestmark = pytest.mark.engine
# Longer than vLLM's CPU block of 128 tokens, so that prompts are found in the prefix cache.
REQUESTS = make_requests(6, temperature=0.0, max_tokens=20, shared_prompt_tokens=300)
SAMPLED = make_requests(6, temperature=0.7, max_tokens=20, shared_prompt_tokens=300, prefix="s")
SCORED = np.random.default_rng(5).integers(3, 250, size=90).astype(np.int32)


@pytest.fixture
def buckets() -> Iterator[BucketFolder]:
    folder = BucketFolder("engine-test")
    yield folder
    folder.close()


async def outputs(engine: VLLMEngine) -> list[bytes]:
    """Tokens and log-probs of greedy, sampled and given tokens, as bytes."""
    completions = await engine.generate([*REQUESTS, *SAMPLED])
    scored = await engine.score_tokens([SCORED], [1])
    return [
        *(c.token_ids.tobytes() + c.log_probs.tobytes() for c in completions),
        *map(_raw, scored),
    ]


def _raw(values: np.ndarray) -> bytes:
    return values.tobytes()


async def send(
    engine: VLLMEngine,
    weights: Sequence[tuple[str, torch.Tensor]],
    folder: BucketFolder,
    *,
    per_bucket: int,
) -> None:
    """Start an update and load all buckets, the two files in turn."""
    await engine.start_weight_update()
    for number, begin in enumerate(range(0, len(weights), per_bucket)):
        path = folder.paths[number % 2]
        await engine.load_bucket(write_bucket(path, weights[begin : begin + per_bucket]))


class FileTrainer:
    """Sends given tensors, a fixed number per bucket."""

    def __init__(self, weights: list[tuple[str, torch.Tensor]], *, per_bucket: int) -> None:
        self.weights = weights
        self._buckets = [
            weights[begin : begin + per_bucket] for begin in range(0, len(weights), per_bucket)
        ]

    def bucket_plan(self) -> list[Bucket]:
        return [Bucket(path="", num_bytes=0, tensors=()) for _ in self._buckets]

    async def write_bucket(self, index: int, path: str) -> Bucket:
        return await asyncio.to_thread(write_bucket, path, self._buckets[index])


def shuffled(folder: Path, dtype: torch.dtype | None = None) -> list[tuple[str, torch.Tensor]]:
    """A model's tensors in random order: fused layers are torn over many buckets."""
    weights = list(load_file(folder / "model.safetensors").items())
    random.Random(1).shuffle(weights)
    return [(name, tensor.to(dtype or tensor.dtype)) for name, tensor in weights]


@pytest.mark.parametrize(
    ("family", "tied", "dtype", "random_weights", "quantization"),
    [
        ("qwen2", True, torch.float32, False, None),
        ("qwen2", True, torch.bfloat16, True, None),
        ("qwen2", True, torch.bfloat16, False, "fp8"),
        ("qwen3", False, torch.float32, True, None),
        ("llama", False, torch.bfloat16, False, None),
        ("qwen3_moe", False, torch.float32, False, None),
        ("gemma3_text", True, torch.float32, True, None),
        ("glm4", False, torch.bfloat16, False, None),
    ],
)
def test_update_equals_a_fresh_engine(
    tmp_path: Path,
    buckets: BucketFolder,
    family: str,
    tied: bool,
    dtype: torch.dtype,
    random_weights: bool,
    quantization: str | None,
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for seed, folder in enumerate((old, new)):
        make_model(folder, family=family, tied=tied, dtype=dtype, seed=seed)
    name = str(dtype).removeprefix("torch.")

    async def update() -> tuple[list[bytes], list[bytes]]:
        before = [] if random_weights else await outputs(engine)
        await send(engine, shuffled(new), buckets, per_bucket=1)
        await engine.finish_weight_update(7)
        assert await engine.weight_version() == 7
        first = await outputs(engine)
        # Again by the sync itself, with trainer-precision tensors in larger buckets.
        trainer = FileTrainer(shuffled(new, torch.float32), per_bucket=5)
        stats = await sync_weights(trainer, [engine], 8, paths=buckets.paths, timeout_s=60)
        assert stats.num_bytes >= sum(4 * tensor.numel() for _, tensor in trainer.weights)
        assert await outputs(engine) == first
        return before, first

    with running_engine(
        old, dtype=name, random_weights=random_weights, quantization=quantization
    ) as engine:
        before, after = asyncio.run(update())
    with running_engine(new, dtype=name, quantization=quantization) as engine:
        expected = asyncio.run(outputs(engine))
    assert after == expected
    if before:
        assert all(left != right for left, right in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("update") / "model"
    make_model(folder)
    return folder


def test_update_life_cycle(model_folder: Path, buckets: BucketFolder) -> None:
    """Dummy weights refuse; running requests refuse an update; calls during an update wait."""
    weights = shuffled(model_folder)
    with running_engine(model_folder, random_weights=True) as engine:
        asyncio.run(_life_cycle(engine, weights, buckets))


async def _life_cycle(
    engine: VLLMEngine, weights: list[tuple[str, torch.Tensor]], buckets: BucketFolder
) -> None:
    with pytest.raises(RuntimeError, match="no weights were synced"):
        await engine.generate(REQUESTS)
    assert await engine.weight_version() == -1
    # One that was started anew while the others slept is woken with them.
    await engine._call(lambda llm: llm.wake_up())
    with pytest.raises(RuntimeError, match="needs start_weight_update"):
        await engine.finish_weight_update(1)
    await send(engine, weights, buckets, per_bucket=4)
    with pytest.raises(RuntimeError, match="already under way"):
        await engine.start_weight_update()
    await engine.finish_weight_update(1)
    first = await engine.generate(REQUESTS)
    assert {completion.weight_version for completion in first} == {1}

    endless = make_requests(2, max_tokens=400, prefix="endless")
    task = asyncio.create_task(engine.generate(endless))
    await engine.generate(make_requests(1, max_tokens=2, prefix="short"))  # so they have begun
    with pytest.raises(RuntimeError, match="2 requests are running.*'endless0'"):
        await engine.start_weight_update()
    await engine.abort([request.request_id for request in endless])
    assert {completion.finish_reason for completion in await task} == {"abort"}

    await send(engine, weights, buckets, per_bucket=4)
    waiting = asyncio.create_task(engine.generate([*REQUESTS, *SAMPLED]))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    await engine.abort(["s0"])  # one of those that wait
    await engine.finish_weight_update(2)
    late: list[Completion] = await waiting
    assert {completion.weight_version for completion in late[:6]} == {2}
    assert [c.token_ids.tolist() for c in late[:6]] == [c.token_ids.tolist() for c in first]
    assert late[6].finish_reason == "abort" and len(late[6].token_ids) == 0
    assert len(late[7].token_ids) == 20


@pytest.mark.parametrize("fault", ["missing", "unknown", "twice", "short"])
def test_wrong_update_is_refused(model_folder: Path, buckets: BucketFolder, fault: str) -> None:
    """And from then on nothing is sampled from half-loaded weights."""
    weights = shuffled(model_folder)
    names = [name for name, _ in weights]
    key = "model.layers.1.self_attn.k_proj.weight"  # a part of a fused layer
    index = names.index(key)
    message = key.replace(".", r"\.")
    if fault == "missing":
        del weights[index]
    elif fault == "unknown":
        weights[index] = ("model.layers.2.self_attn.k_proj.weight", weights[index][1])
        message = "model.layers.2.self_attn.k_proj.weight' is not in the model"
    elif fault == "twice":
        weights.append(weights[index])
        message += "' came twice"
    else:
        weights[index] = (key, weights[index][1][:-1])
        message = "127|32"  # rows; vLLM's loader checks the shape

    async def update() -> None:
        waiting: asyncio.Task[list[Completion]] | None = None
        with pytest.raises((RuntimeError, ValueError, AssertionError), match=message):
            await engine.start_weight_update()
            waiting = asyncio.create_task(engine.generate(REQUESTS))
            await asyncio.sleep(0)
            for name, tensor in weights:
                await engine.load_bucket(write_bucket(buckets.paths[0], [(name, tensor)]))
            await engine.finish_weight_update(1)
        assert waiting is not None
        for call in (waiting, engine.generate(REQUESTS)):
            with pytest.raises(RuntimeError, match="weight update failed .*start the engine anew"):
                await call
        assert await engine.weight_version() == 0

    with running_engine(model_folder) as engine:
        asyncio.run(update())
