"""Sampling: right log-probs, the right distribution, and results that depend on nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from herl_megatron.rollout.vllm.vllm_engine import VLLMEngine
from herl_megatron.types import Completion, GenerateRequest, SamplingSettings
from tests.engine.harness import running_engine
from tests.engine.tiny_models import VOCAB, hf_logits, make_model, make_requests, picked

pytestmark = pytest.mark.engine
END_TOKENS = tuple(range(3, 23))  # 20 of 250, so that many responses stop early
MAX_NUM_SEQS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generate") / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return make_model(folder)


@pytest.fixture(scope="module")
def engine(folder: Path, model: PreTrainedModel) -> Iterator[VLLMEngine]:
    with running_engine(
        folder, end_token_ids=END_TOKENS, max_num_seqs=MAX_NUM_SEQS, max_model_tokens=2048
    ) as running:
        yield running


def run(engine: VLLMEngine, requests: Sequence[GenerateRequest]) -> list[Completion]:
    return asyncio.run(engine.generate(requests))


def assert_same(left: Completion, right: Completion) -> None:
    """Equal bit for bit."""
    assert left.request_id == right.request_id
    assert left.token_ids.tolist() == right.token_ids.tolist()
    assert left.log_probs.tobytes() == right.log_probs.tobytes()
    assert left.finish_reason == right.finish_reason


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_log_probs_are_those_of_the_sampling_distribution(
    engine: VLLMEngine, model: PreTrainedModel, temperature: float
) -> None:
    requests = make_requests(20, temperature=temperature)
    for request, completion in zip(requests, run(engine, requests), strict=True):
        logits = hf_logits(model, request.prompt_token_ids, completion.token_ids)
        expected = picked(torch.log_softmax(logits / temperature, -1), completion.token_ids)
        assert completion.log_probs.dtype == np.float32
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (-1, 0.6), (8, 0.7)])
def test_log_probs_under_truncation(
    engine: VLLMEngine, model: PreTrainedModel, top_k: int, top_p: float
) -> None:
    requests = make_requests(12, temperature=0.8, top_k=top_k, top_p=top_p)
    for request, completion in zip(requests, run(engine, requests), strict=True):
        logits = hf_logits(model, request.prompt_token_ids, completion.token_ids) / 0.8
        for row, token, log_prob in zip(
            logits, completion.token_ids, completion.log_probs, strict=True
        ):
            order = torch.argsort(row, descending=True)
            if top_k > 0:
                order = order[:top_k]
            probs = torch.softmax(row[order], 0)
            before = torch.cumsum(probs, 0) - probs
            kept = order[before < top_p]
            assert int(token) in kept.tolist()
            expected = torch.log_softmax(row[kept], 0)[kept.tolist().index(int(token))]
            assert abs(float(expected) - log_prob) <= 1e-4


def test_greedy_takes_the_best_token_at_temperature_one_log_probs(
    engine: VLLMEngine, model: PreTrainedModel
) -> None:
    greedy = make_requests(8, temperature=0.0, top_p=0.5, top_k=3)
    random = make_requests(8, temperature=1.0, prefix="x")
    alone = run(engine, greedy)
    mixed = run(engine, [*greedy, *random])[:8]
    for request, completion, other in zip(greedy, alone, mixed, strict=True):
        logits = hf_logits(model, request.prompt_token_ids, completion.token_ids)
        assert completion.token_ids.tolist() == logits.argmax(-1).tolist()
        expected = picked(torch.log_softmax(logits, -1), completion.token_ids)
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)
        assert_same(completion, other)


def test_results_do_not_depend_on_batch_or_order(engine: VLLMEngine) -> None:
    # More than MAX_NUM_SEQS, so some wait; over vLLM's CPU block of 128 tokens, so prefixes and
    # attention are taken in parts.
    requests = make_requests(40, max_tokens=32, shared_prompt_tokens=130)
    together = run(engine, requests)
    backwards = run(engine, requests[::-1])[::-1]
    alone = [run(engine, [request])[0] for request in requests[:10]]

    async def staggered() -> list[Completion]:
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(engine.generate([request])))
            await asyncio.sleep(0.005)
        return [(await task)[0] for task in tasks]

    for other in (backwards, asyncio.run(staggered())):
        for left, right in zip(together, other, strict=True):
            assert_same(left, right)
    for left, right in zip(together[:10], alone, strict=True):
        assert_same(left, right)


def test_seed_decides(engine: VLLMEngine) -> None:
    request = make_requests(1, max_tokens=32)[0]
    first, again, other = run(
        engine,
        [request, replace(request, request_id="again"), replace(request, request_id="o", seed=5)],
    )
    assert first.token_ids.tolist() == again.token_ids.tolist()
    assert first.token_ids.tolist() != other.token_ids.tolist()


def test_tokens_come_from_the_reported_distribution(
    engine: VLLMEngine, model: PreTrainedModel
) -> None:
    """Chi-square over 3000 seeds against HF probabilities; neighbouring seeds as the run uses."""
    prompt = make_requests(1)[0]
    samples = 3000
    requests = [
        replace(prompt, request_id=f"s{i}", seed=i, sampling=SamplingSettings(max_tokens=1))
        for i in range(samples)
    ]
    drawn = np.array([int(c.token_ids[0]) for c in run(engine, requests)])
    probs = torch.softmax(hf_logits(model, prompt.prompt_token_ids, drawn[:1])[0], 0).numpy()
    frequent = probs * samples >= 10
    assert frequent.sum() >= 20, "the distribution is too sharp for the test to mean anything"
    counts = np.bincount(drawn, minlength=VOCAB)
    observed = np.append(counts[frequent], counts[~frequent].sum())
    expected = np.append(probs[frequent], probs[~frequent].sum()) * samples
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    degrees = int(frequent.sum())
    # Mean `degrees`, standard deviation sqrt(2 degrees); the draw is fixed by the seeds.
    assert abs(chi_square - degrees) <= 4 * (2 * degrees) ** 0.5


def test_finish_reasons(engine: VLLMEngine) -> None:
    completions = run(engine, make_requests(40, max_tokens=12))
    reasons = {completion.finish_reason for completion in completions}
    assert reasons == {"stop", "length"}
    for completion in completions:
        ends = np.isin(completion.token_ids, END_TOKENS)
        assert not ends[:-1].any()
        assert len(completion.log_probs) == len(completion.token_ids)
        if completion.finish_reason == "stop":
            assert ends[-1]
        else:
            assert not ends[-1] and len(completion.token_ids) == 12


def test_score_tokens_are_plain_model_log_probs(engine: VLLMEngine, model: PreTrainedModel) -> None:
    draw = np.random.default_rng(3)
    sequences = [draw.integers(3, VOCAB, size=n).astype(np.int32) for n in (2, 30, 300, 2048)]
    starts = [1, 7, 250, 1]
    scored = asyncio.run(engine.score_tokens(sequences, starts))
    for sequence, start, log_probs in zip(sequences, starts, scored, strict=True):
        logits = hf_logits(model, sequence[:start], sequence[start:])
        expected = picked(torch.log_softmax(logits, -1), sequence[start:])
        np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_abort_returns_what_was_sampled(engine: VLLMEngine) -> None:
    long = make_requests(1, max_tokens=1900)[0]
    long = next(  # one that runs to the end, as seen in a full run
        candidate
        for candidate in (replace(long, seed=seed) for seed in range(100))
        if len(run(engine, [_with_max_tokens(candidate, 60)])[0].token_ids) == 60
    )
    start = run(engine, [_with_max_tokens(long, 60)])[0]
    short = replace(long, request_id="short", sampling=SamplingSettings(max_tokens=10))

    async def scenario() -> Completion:
        task = asyncio.create_task(engine.generate([long]))
        await engine.generate([short])  # drawn in the same batch, so `long` has begun
        await engine.abort([long.request_id, "unknown"])
        return (await task)[0]

    aborted = asyncio.run(scenario())
    assert aborted.finish_reason == "abort"
    count = min(60, len(aborted.token_ids))
    assert 1 <= count and len(aborted.token_ids) < 1900
    assert len(aborted.log_probs) == len(aborted.token_ids)
    assert aborted.token_ids[:count].tolist() == start.token_ids[:count].tolist()
    assert aborted.log_probs[:count].tobytes() == start.log_probs[:count].tobytes()


def test_cancelled_call_frees_its_requests(engine: VLLMEngine) -> None:
    requests = make_requests(4, max_tokens=1900)

    async def scenario() -> list[Completion]:
        task = asyncio.create_task(engine.generate(requests))
        await asyncio.sleep(0)  # the task hands its requests over,
        await engine.weight_version()  # and this call comes after them: they are running
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await engine.generate([_with_max_tokens(request, 5) for request in requests])

    assert len(asyncio.run(scenario())) == 4  # the same ids again: nothing is left of the first


def test_lower_priority_waits(engine: VLLMEngine) -> None:
    """A first sample overtakes the revisions that queued before it."""
    revisions = [
        replace(request, priority=1)
        for request in make_requests(3 * MAX_NUM_SEQS, max_tokens=1, prefix="revision")
    ]
    sample = make_requests(1, max_tokens=1, prefix="sample")[0]
    finished: list[str] = []

    async def one(request: GenerateRequest) -> None:
        await engine.generate([request])
        finished.append(request.request_id)

    async def scenario() -> None:
        gate = threading.Event()
        engine._thread.call(lambda llm: gate.wait(60))  # no step before all have arrived
        tasks = [asyncio.create_task(one(request)) for request in [*revisions, sample]]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert finished.index("sample0") < MAX_NUM_SEQS  # in the first step; last in arrival order
    assert len(finished) == 3 * MAX_NUM_SEQS + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": SamplingSettings(max_tokens=2048)}, "'r0' needs .* = .* holds 2048"),
        ({"prompt_token_ids": np.array([3, VOCAB], dtype=np.int32)}, "token id 250.*0..249"),
        ({"prompt_token_ids": np.array([-1], dtype=np.int32)}, "token id -1"),
        ({"prompt_token_ids": np.array([], dtype=np.int32)}, "'r0' has no tokens"),
        ({"sampling": SamplingSettings(max_tokens=0)}, "max_tokens=0"),
        ({"sampling": SamplingSettings(top_p=0.0)}, "top_p 0.0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_request_is_refused_and_the_engine_lives(
    engine: VLLMEngine, change: dict[str, object], message: str
) -> None:
    request = make_requests(1, max_tokens=4)[0]
    with pytest.raises(ValueError, match=message):
        run(engine, [replace(request, **change)])  # type: ignore[arg-type]
    assert len(run(engine, [request])[0].token_ids) >= 1


def test_repeated_request_id_is_refused(engine: VLLMEngine) -> None:
    request = make_requests(1)[0]
    with pytest.raises(ValueError, match="'r0' is already in use"):
        run(engine, [request, request])


def test_score_limits(engine: VLLMEngine) -> None:
    for start, tokens in ((0, 5), (5, 5), (1, 2049)):
        with pytest.raises(ValueError, match=f"start {start} and {tokens} tokens"):
            asyncio.run(engine.score_tokens([np.full(tokens, 5, dtype=np.int32)], [start]))


def _with_max_tokens(request: GenerateRequest, max_tokens: int) -> GenerateRequest:
    return replace(request, sampling=replace(request.sampling, max_tokens=max_tokens))
