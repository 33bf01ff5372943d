"""The three schedules on an engine that draws one token per tick, by what it is asked alone.

The engine's letters are a function of seed and position, its log-probs of weight version and
position, so that every token of a response shows when it was drawn and from which request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from herl_megatron.config.schema import (
    Config,
    HindsightConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from herl_megatron.observability.metrics import is_measured
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.modes import GroupSource, open_source, prompts_in_flight
from herl_megatron.rollout.pipeline import PipelineError, RolloutPipeline
from herl_megatron.seeds import continuation_seed, request_seed
from herl_megatron.types import (
    Completion,
    FinishReason,
    GenerateRequest,
    Prompt,
    Score,
    ScoredGroup,
)
from tests.unit.rollout.fakes import CharTokenizer, FakeScorer, RefusingEngine, make_prompts

GROUP, LIMIT, SEED = 2, 90, 11
PROMPTS = make_prompts(12)


class TickEngine(RefusingEngine):
    """Draws a token of every open request per tick of the event loop; lengths come from seeds.

    `serve(version)` is the weight sync; it refuses while requests are open, as the real one does.
    """

    def __init__(self) -> None:
        self.version = 0
        self.open: dict[str, tuple[GenerateRequest, list[int], list[float]]] = {}
        self.log: list[tuple[int, GenerateRequest]] = []
        self.aborted: list[str] = []

    def serve(self, version: int) -> None:
        assert not self.open, f"a weight sync while {list(self.open)} are sampled"
        self.version = version

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def _one(self, request: GenerateRequest) -> Completion:
        assert request.request_id not in self.open
        self.log.append((self.version, request))
        tokens: list[int] = []
        log_probs: list[float] = []
        self.open[request.request_id] = (request, tokens, log_probs)
        longest = 120 if request.seed % 4 == 0 else 30  # a few are much longer than the others
        length = min(1 + request.seed // 4 % longest, request.sampling.max_tokens)
        reason: FinishReason = "length" if length == request.sampling.max_tokens else "stop"
        try:
            while len(tokens) < length:
                await asyncio.sleep(0)
                if request.request_id in self.aborted:
                    self.aborted.remove(request.request_id)
                    reason = "abort"
                    break
                place = len(request.prompt_token_ids) + len(tokens)
                tokens.append(letter(request.seed, place))
                log_probs.append(log_prob(self.version, place))
        finally:
            del self.open[request.request_id]
        ids, numbers = np.array(tokens, np.int32), np.array(log_probs, np.float32)
        return Completion(request.request_id, ids, numbers, reason, self.version)

    async def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += [name for name in request_ids if name in self.open]


class TickScorer(FakeScorer):
    """Takes some ticks; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        self.asked.append((prompt.id, tuple(texts)))
        for _ in range(sum(map(len, texts)) % 20):
            await asyncio.sleep(0)
        return await super().score_group(prompt, texts)


def letter(seed: int, place: int) -> int:
    return 97 + (seed // 7 + 5 * place) % 26


def log_prob(version: int, place: int) -> float:
    return -version - place / 1024


def make_source(
    mode: str,
    *,
    steps: int = 6,
    hindsight: bool = True,
    engine: TickEngine | None = None,
    scorer: TickScorer | None = None,
    **rollout: Any,
) -> tuple[GroupSource, TickEngine]:
    config = Config(
        model=ModelConfig(path="unused"),
        run=RunConfig(seed=SEED),
        rollout=RolloutConfig.model_validate(
            {"mode": mode, "group_size": GROUP, "max_response_tokens": LIMIT} | rollout
        ),
        train=TrainConfig(steps=steps, prompts_per_step=4, prompts_per_optimizer_step=4),
    )
    engine = TickEngine() if engine is None else engine
    pipeline = RolloutPipeline(
        [engine],
        TickScorer() if scorer is None else scorer,
        CharTokenizer(),
        config.rollout,
        open_stage(
            HindsightConfig(max_experiences=1, enabled=hindsight), config.rollout, max_tokens=10_000
        ),
        seed=SEED,
    )
    source = open_source(
        pipeline, PROMPTS, train=config.train, rollout=config.rollout, seed=SEED, shuffle=True
    )
    return source, engine


async def one_step(source: GroupSource, engine: TickEngine, step: int) -> list[ScoredGroup]:
    """What the loop does, with a little time for training."""
    groups = await source.next(step)
    for _ in range(10):
        await asyncio.sleep(0)
    await source.drain()
    engine.serve(step + 1)
    return groups


async def loop(
    source: GroupSource, engine: TickEngine, steps: range
) -> tuple[list[list[ScoredGroup]], list[dict[str, float]]]:
    groups, metrics = [], []
    for step in steps:
        groups.append(await one_step(source, engine, step))
        metrics.append(source.metrics())
    await source.close()
    return groups, metrics


def run(
    mode: str, steps: int = 6, **options: Any
) -> tuple[list[list[ScoredGroup]], list[dict[str, float]], TickEngine]:
    source, engine = make_source(mode, steps=steps, **options)
    return *asyncio.run(loop(source, engine, range(steps))), engine


def completions(groups: Sequence[ScoredGroup]) -> list[tuple[np.ndarray, Completion]]:
    """Every response with the prompt that it answers."""
    found = []
    for group in groups:
        found += [(group.group.prompt_token_ids, r.completion) for r in group.group.rollouts]
        for revision in group.revisions:
            found.append((revision.experience.prompt_token_ids, revision.rollout.completion))
    return found


def texts(steps: Sequence[Sequence[ScoredGroup]]) -> list[list[str]]:
    return [[c.token_ids.tobytes().hex() for _, c in completions(groups)] for groups in steps]


def ids(groups: Sequence[ScoredGroup]) -> list[str]:
    return [group.group.prompt.id for group in groups]


@pytest.mark.parametrize("bound", [1, 2])
def test_partial_resumes_with_versions_and_log_probs(bound: int) -> None:
    steps, metrics, engine = run("partial", oversample=1.0, max_staleness=bound, steps=8)
    sent = {(version, request.request_id): request for version, request in engine.log}
    resumed = 0
    for step, groups in enumerate(steps):
        assert len(groups) == 4
        for prompt, completion in completions(groups):
            assert completion.finish_reason in ("stop", "length")
            place, segments = len(prompt), completion.segments
            versions = [segment.weight_version for segment in segments]
            assert versions == sorted(set(versions)) and versions[-1] <= step
            assert versions[0] >= step - bound
            resumed += len(segments) > 1
            start = 0
            for segment in segments:
                request = sent[segment.weight_version, completion.request_id]
                drawn = completion.token_ids[:start]
                assert request.prompt_token_ids.tolist() == [*prompt, *drawn]
                assert request.sampling.max_tokens == LIMIT - start
                piece = slice(start, start + segment.tokens)
                places = range(place + start, place + start + segment.tokens)
                assert completion.token_ids[piece].tolist() == [
                    letter(request.seed, p) for p in places
                ]
                expected = [log_prob(segment.weight_version, p) for p in places]
                assert (
                    completion.log_probs[piece].tolist() == np.array(expected, np.float32).tolist()
                )
                start += segment.tokens
            assert start == len(completion.token_ids) == len(completion.log_probs) <= LIMIT
    assert resumed >= 5
    assert sum(m["rollout/resumed"] for m in metrics) == resumed
    assert max(m["rollout/staleness_max"] for m in metrics) == bound
    assert metrics[0]["rollout/carried_groups"] == 4 and metrics[0]["rollout/carried_tokens"] > 0
    assert metrics[-1]["rollout/carried_groups"] == 0


def test_the_rest_is_drawn_with_its_own_seed() -> None:
    _, _, engine = run("partial", oversample=1.0)
    first: dict[str, GenerateRequest] = {}
    seen = 0
    for _, request in engine.log:
        if (begun := first.setdefault(request.request_id, request)) is request:
            continue
        drawn = len(request.prompt_token_ids) - len(begun.prompt_token_ids)
        seen += drawn > 0
        expected = continuation_seed(begun.seed, tokens=drawn) if drawn else begun.seed
        assert request.seed == expected
    assert seen >= 3
    name, request = next(iter(first.items()))
    assert name == "step0-prompt0-rollout0"
    prompt = next(p for p in PROMPTS if (CharTokenizer().prompt_ids(p.messages).tolist()
                                         == request.prompt_token_ids.tolist()))  # fmt: skip
    assert request.seed == request_seed(SEED, step=0, prompt_id=prompt.id, kind="rollout", index=0)


def test_partial_uses_every_prompt_once_and_no_token_is_lost() -> None:
    """The prompts of a `sync` run, each once, in another order; all that was drawn is learnt from.

    12 prompts make 2 epochs of 6 steps.
    """
    steps, metrics, _ = run("partial", oversample=0.5, max_staleness=2)
    reference, _, _ = run("sync")
    drawn = sorted(name for groups in steps for name in ids(groups))
    assert drawn == sorted(name for groups in reference for name in ids(groups))
    assert [ids(groups) for groups in steps] != [ids(groups) for groups in reference]
    used = sum(len(c.token_ids) for groups in steps for _, c in completions(groups))
    assert used == sum(m["rollout/tokens"] + m["rollout/revision_tokens"] for m in metrics)


def test_what_is_due_is_waited_for_and_used() -> None:
    """With a bound of 1 every group of a step is used in it or in the next."""
    born: dict[str, int] = {}
    steps, _, engine = run("partial", oversample=1.0, max_staleness=1, hindsight=False)
    for version, request in engine.log:
        born.setdefault(request.request_id, version)
    late = 0
    for step, groups in enumerate(steps):
        ages = [step - born[g.group.rollouts[0].completion.request_id] for g in groups]
        assert set(ages) <= {0, 1} and ages == sorted(ages, reverse=True)
        late += sum(ages)
    assert late >= 10


def test_nothing_new_starts_after_the_cut() -> None:
    """A group that is being scored at the cut asks for its revisions in the next step."""

    class Watched(TickEngine):
        was_cut = False

        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            assert not self.was_cut, f"{requests[0].request_id} was sent after the cut"
            return await super().generate(requests)

        async def abort(self, request_ids: Sequence[str]) -> None:
            self.was_cut = True
            await super().abort(request_ids)

        def serve(self, version: int) -> None:
            self.was_cut = False
            super().serve(version)

    class Held(TickScorer):
        async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
            scores = await super().score_group(prompt, texts)
            if texts == list(self.asked[0][1]):  # what is scored first is finished last
                while not engine.was_cut:
                    await asyncio.sleep(0)
            return scores

    engine, scorer = Watched(), Held()
    steps, _, _ = run("partial", engine=engine, scorer=scorer, oversample=1.0, steps=3)
    held = scorer.asked[0][0]
    first = {name for groups in steps[:1] for name in ids(groups)}
    (group,) = (g for g in steps[1] if g.group.prompt.id == held)
    assert held not in first
    assert {rollout.completion.weight_version for rollout in group.group.rollouts} == {0}
    (revision,) = group.revisions
    assert revision.rollout.completion.segments[0].weight_version == 1
    assert len(set(scorer.asked)) == len(scorer.asked)  # and nothing is judged twice


def test_partial_without_extra_prompts_is_sync() -> None:
    plain, _, _ = run("sync")
    same, metrics, engine = run("partial", oversample=0.0)
    assert texts(same) == texts(plain)
    assert all(m["rollout/staleness_max"] == 0 == m["rollout/carried_groups"] for m in metrics)
    assert not engine.aborted


def test_one_step_off_samples_the_next_step_with_this_steps_weights() -> None:
    """The same prompts and seeds as `sync`; only the versions differ."""
    plain, _, _ = run("sync")
    steps, metrics, engine = run("one_step_off", hindsight=False)
    assert [ids(groups) for groups in steps] == [ids(groups) for groups in plain]
    for step, groups in enumerate(steps):
        expected = max(step - 1, 0)
        assert {c.weight_version for _, c in completions(groups)} == {expected}
        assert metrics[step]["rollout/staleness_mean"] == step - expected
        tokens = sum(len(c.token_ids) for _, c in completions(groups))
        assert metrics[step]["rollout/tokens"] == tokens
        for prompt, completion in completions(groups):
            places = range(len(prompt), len(prompt) + len(completion.token_ids))
            assert (
                completion.log_probs.tolist()
                == np.array([log_prob(expected, p) for p in places], np.float32).tolist()
            )
    assert texts(steps) == texts(run("sync", hindsight=False)[0])
    assert max(int(r.request_id[4]) for _, r in engine.log) == 5  # nothing beyond the last step


@pytest.mark.parametrize("mode", ["sync", "partial", "one_step_off"])
@pytest.mark.parametrize("after", [1, 3, 5])
def test_resumed_equals_uninterrupted(mode: str, after: int) -> None:
    """State through JSON into a new source and engine: the same groups, metrics and requests."""
    options: dict[str, Any] = {"oversample": 1.0} if mode == "partial" else {}

    scorer, whole_scorer = TickScorer(), TickScorer()

    async def interrupted() -> tuple[
        list[list[ScoredGroup]], list[dict[str, float]], list[tuple[int, GenerateRequest]]
    ]:
        first, engine = make_source(mode, scorer=scorer, **options)
        begun = [await one_step(first, engine, step) for step in range(after)]
        state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
        await first.close()
        second, fresh = make_source(mode, scorer=scorer, **options)
        second.load_state_dict(state)
        fresh.serve(after)
        rest, metrics = await loop(second, fresh, range(after, 6))
        return begun + rest, metrics, engine.log + fresh.log

    whole, metrics, engine = run(mode, scorer=whole_scorer, **options)
    steps, rest_metrics, log = asyncio.run(interrupted())
    assert texts(steps) == texts(whole)
    for left, right in zip(steps, whole, strict=True):
        for (_, one), (_, other) in zip(completions(left), completions(right), strict=True):
            assert one.log_probs.tobytes() == other.log_probs.tobytes()
            assert one.segments == other.segments
        assert [g.scores for g in left] == [g.scores for g in right]
        assert [[r.score for r in g.revisions] for g in left] == [
            [r.score for r in g.revisions] for g in right
        ]
    assert sorted(scorer.asked) == sorted(whole_scorer.asked)
    assert len(set(scorer.asked)) == len(scorer.asked)  # nothing is judged twice
    assert _counts(rest_metrics) == _counts(metrics[after:])
    assert sorted((v, r.request_id) for v, r in log) == sorted(
        (v, r.request_id) for v, r in engine.log
    )


def _counts(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not is_measured(k)} for row in metrics]


def test_failure_beside_training_is_raised_before_the_sync_and_close_leaves_nothing() -> None:
    class Dying(TickEngine):
        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            if requests[0].request_id.startswith("step1"):
                raise ConnectionError("actor died")
            return await super().generate(requests)

    async def main(engine: TickEngine) -> set[asyncio.Task[Any]]:
        source, _ = make_source("one_step_off", engine=engine)
        await source.next(0)
        if isinstance(engine, Dying):
            with pytest.raises(PipelineError, match="engine 0 failed: ConnectionError: actor died"):
                await source.drain()
        else:
            while not engine.open:
                await asyncio.sleep(0)
        await source.close()
        assert not engine.open
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert not asyncio.run(main(Dying()))
    assert not asyncio.run(main(TickEngine()))


def test_failure_in_partial_is_raised_and_aborts_the_rest() -> None:
    class Dying(TickEngine):
        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            if requests[0].request_id.startswith("step2"):
                raise ConnectionError("actor died")
            return await super().generate(requests)

    engine = Dying()
    source, _ = make_source("partial", engine=engine, oversample=1.0)
    with pytest.raises(PipelineError, match="actor died"):
        asyncio.run(loop(source, engine, range(6)))
    assert not engine.open


def test_prompts_in_flight() -> None:
    def count(mode: str, share: float) -> int:
        train = TrainConfig(prompts_per_step=10, prompts_per_optimizer_step=10)
        return prompts_in_flight(
            train, RolloutConfig.model_validate({"mode": mode, "oversample": share})
        )

    assert count("sync", 0.5) == 10
    assert count("one_step_off", 0.5) == 10
    assert count("partial", 0.25) == 13  # rounded up
    assert count("partial", 1.0) == 20
