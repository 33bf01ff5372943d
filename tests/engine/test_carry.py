"""Responses cut by a weight sync, on the real engine, against the Hugging Face models.

Version v of the weights is a random model of its own; what the engine says of a token must be what
the model of the token's version says of it by teacher forcing, and nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from herl_megatron.config.schema import (
    Config,
    HindsightConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
)
from herl_megatron.engine import Bucket
from herl_megatron.rollout.carry import continuation, join
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.modes import open_source
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from herl_megatron.types import Completion, GenerateRequest, IntArray, SamplingSettings, ScoredGroup
from herl_megatron.weight_sync.bucket_folder import BucketFolder
from herl_megatron.weight_sync.sync import sync_weights
from herl_megatron.weight_sync.transport import write_bucket
from tests.engine.harness import running_engine
from tests.engine.tiny_models import hf_logits, make_model, make_requests, picked
from tests.unit.rollout.fakes import CharTokenizer, FakeScorer, make_prompts

pytestmark = pytest.mark.engine
STEPS = 4
TEMPERATURE, REVISION_TEMPERATURE = 0.9, 0.3
END_TOKENS = tuple(range(3, 7))  # 4 of 250: many responses are long, some are short
LIMIT = 120


class ModelTrainer:
    """Sends a model's weights in one bucket."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._tensors = [(name, p.detach()) for name, p in model.named_parameters()]

    def bucket_plan(self) -> list[Bucket]:
        return [Bucket(path="", num_bytes=0, tensors=())]

    async def write_bucket(self, index: int, path: str) -> Bucket:
        return write_bucket(path, self._tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("carry")


@pytest.fixture(scope="module")
def models(folder: Path) -> list[PreTrainedModel]:
    return [make_model(folder / f"v{version}", seed=version) for version in range(STEPS)]


@pytest.fixture(scope="module")
def engine(folder: Path, models: list[PreTrainedModel]) -> Iterator[VLLMEngine]:
    with running_engine(
        folder / "v0",
        random_weights=True,
        end_token_ids=END_TOKENS,
        max_model_tokens=2048,
    ) as running:
        yield running


@pytest.fixture
def paths() -> Iterator[tuple[str, str]]:
    folder = BucketFolder("carry-test")
    yield folder.paths
    folder.close()


def expected_log_probs(
    model: PreTrainedModel, prompt: IntArray, completion: Completion, temperature: float
) -> np.ndarray:
    logits = hf_logits(model, prompt, completion.token_ids)
    return picked(torch.log_softmax(logits / temperature, -1), completion.token_ids)


def check_segments(
    models: Sequence[PreTrainedModel], prompt: IntArray, whole: Completion, temperature: float
) -> None:
    start = 0
    for segment in whole.segments:
        piece = slice(start, start + segment.tokens)
        for version, model in enumerate(models):
            expected = expected_log_probs(model, prompt, whole, temperature)[piece]
            apart = np.abs(whole.log_probs[piece] - expected)
            if version == segment.weight_version:
                assert apart.max() <= 1e-4
            elif segment.tokens >= 3:
                assert apart.max() > 0.1, "the models are too alike for the test to mean anything"
        start += segment.tokens
    assert start == len(whole.token_ids)


def responses(group: ScoredGroup) -> Iterator[tuple[IntArray, Completion, float]]:
    for rollout in group.group.rollouts:
        yield group.group.prompt_token_ids, rollout.completion, TEMPERATURE
    for revision in group.revisions:
        context = revision.experience.prompt_token_ids
        yield context, revision.rollout.completion, REVISION_TEMPERATURE


def test_partial_rollouts_over_weight_syncs(
    engine: VLLMEngine, models: list[PreTrainedModel], paths: tuple[str, str]
) -> None:
    """The whole path: cut by the pipeline, weights synced, continued, revised, learnt from."""
    config = Config(
        model=ModelConfig(path="unused"),
        rollout=RolloutConfig(
            mode="partial", oversample=1.0, max_staleness=2, group_size=3,
            max_response_tokens=LIMIT, temperature=TEMPERATURE,
        ),
        train=TrainConfig(steps=STEPS, prompts_per_step=2, prompts_per_optimizer_step=2),
    )  # fmt: skip
    pipeline = RolloutPipeline(
        [engine],
        FakeScorer(),
        CharTokenizer(),
        config.rollout,
        open_stage(
            HindsightConfig(max_experiences=1, temperature=REVISION_TEMPERATURE),
            config.rollout,
            max_tokens=1500,
        ),
        seed=5,
    )
    source = open_source(
        pipeline, make_prompts(8), train=config.train, rollout=config.rollout,
        seed=config.run.seed, shuffle=config.data.shuffle,
    )  # fmt: skip

    async def run() -> list[list[ScoredGroup]]:
        steps = []
        for step, model in enumerate(models):
            await sync_weights(ModelTrainer(model), [engine], step, paths=paths, timeout_s=60)
            steps.append(await source.next(step))
        return steps

    mixed = 0
    for step, groups in enumerate(asyncio.run(run())):
        assert len(groups) == 2
        for prompt, completion, temperature in (r for g in groups for r in responses(g)):
            check_segments(models, prompt, completion, temperature)
            mixed += len(completion.segments) > 1
            assert step - 2 <= completion.segments[0].weight_version <= step
            ends = np.isin(completion.token_ids, END_TOKENS)
            assert not ends[:-1].any() and (ends[-1] or len(ends) == LIMIT)
    assert mixed >= 2


def test_greedy_response_is_the_same_cut_or_not(
    engine: VLLMEngine, models: list[PreTrainedModel], paths: tuple[str, str]
) -> None:
    """Cut twice without new weights; and under new weights its rest is the new model's choice."""
    sampling = SamplingSettings(temperature=0.0, max_tokens=300)
    requests = [replace(r, sampling=sampling) for r in make_requests(4, shared_prompt_tokens=200)]

    async def cut(sent: Sequence[GenerateRequest]) -> list[Completion]:
        task = asyncio.create_task(engine.generate(sent))
        await engine.generate([replace(sent[0], request_id="clock",
                                       sampling=SamplingSettings(max_tokens=20))])  # fmt: skip
        await engine.abort([request.request_id for request in sent])
        return await task

    async def go_on(parts: list[Completion], *, end: bool) -> list[Completion]:
        open_ = [(r, p) for r, p in zip(requests, parts, strict=True)
                 if p.finish_reason == "abort"]  # fmt: skip
        sent = [continuation(request, part) for request, part in open_]
        rest = await (engine.generate(sent) if end else cut(sent)) if sent else []
        joined = {p.request_id: join(p, r) for (_, p), r in zip(open_, rest, strict=True)}
        return [joined.get(part.request_id, part) for part in parts]

    async def run() -> tuple[list[Completion], ...]:
        await sync_weights(ModelTrainer(models[0]), [engine], 10, paths=paths, timeout_s=60)
        whole = await engine.generate(requests)
        twice = await go_on(await go_on(await cut(requests), end=False), end=True)
        parts = await cut(requests)
        await sync_weights(ModelTrainer(models[1]), [engine], 11, paths=paths, timeout_s=60)
        return whole, twice, parts, await go_on(parts, end=True)

    whole, twice, parts, changed = asyncio.run(run())
    assert any(part.finish_reason == "abort" and len(part.token_ids) for part in parts)
    for request, one, other, part, mixed in zip(
        requests, whole, twice, parts, changed, strict=True
    ):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert (one.finish_reason, one.segments) == (other.finish_reason, other.segments)
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
        begun = len(part.token_ids)
        assert mixed.token_ids[:begun].tolist() == one.token_ids[:begun].tolist()
        best = hf_logits(models[1], request.prompt_token_ids, mixed.token_ids).argmax(-1)
        assert mixed.token_ids[begun:].tolist() == best[begun:].tolist()
        check_segments(models[:2], request.prompt_token_ids, _renumbered(mixed), 1)


def _renumbered(completion: Completion) -> Completion:
    """Versions 10 and 11 as the places of their models."""
    earlier = tuple(replace(s, weight_version=s.weight_version - 10) for s in completion.earlier)
    return replace(completion, earlier=earlier, weight_version=completion.weight_version - 10)
