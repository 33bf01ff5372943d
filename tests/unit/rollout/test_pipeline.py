"""The rollout stream: order of work, independence of arrival order, failures."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from herl_megatron.config.reference_compat import effective
from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import PipelineError, RolloutPipeline
from herl_megatron.seeds import request_seed
from herl_megatron.types import (
    Completion,
    GenerateRequest,
    Message,
    Prompt,
    Rubric,
    SamplingSettings,
    Score,
    Scored,
    ScoredGroup,
)
from tests.unit.rollout.fakes import CRITERIA, CharTokenizer, FakeEngine, FakeScorer, make_prompts

HINDSIGHT = HindsightConfig(max_experiences=2, revisions_per_experience=2, temperature=0.3)
ROLLOUT = RolloutConfig(group_size=4, temperature=0.9, top_p=0.95, top_k=30, max_response_tokens=8)


def _pipeline(
    engines: Sequence[FakeEngine],
    scorer: FakeScorer | None = None,
    *,
    hindsight: HindsightConfig | None = HINDSIGHT,
    rollout: RolloutConfig = ROLLOUT,
    max_experience_tokens: int = 10_000,
    answer_after: str = "",
    **options: Any,
) -> RolloutPipeline:
    stage = None
    if hindsight is not None:
        stage = open_stage(
            hindsight, rollout, max_tokens=max_experience_tokens, answer_after=answer_after
        )
    scorer = FakeScorer() if scorer is None else scorer
    options = {"seed": 11} | options
    return RolloutPipeline(engines, scorer, CharTokenizer(), rollout, stage, **options)


def _plain(value: Any) -> Any:
    """Everything in a value, arrays as bytes, so that equal means equal bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return type(value).__name__, [(f.name, _plain(getattr(value, f.name))) for f in fields]
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _without_request_ids(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_without_request_ids(i) for i in plain if not _is_request_id(i)]
    return tuple(map(_without_request_ids, plain)) if isinstance(plain, tuple) else plain


def _is_request_id(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and item[0] == "request_id"


class Thinker(FakeEngine):
    """Thinks aloud before each of its answers."""

    def complete(self, request: GenerateRequest) -> Completion:
        answer = super().complete(request)
        thought = CharTokenizer().plain_ids("hm</think>")
        return dataclasses.replace(
            answer,
            token_ids=np.concatenate([thought, answer.token_ids]),
            log_probs=np.concatenate([np.zeros(len(thought), np.float32), answer.log_probs]),
        )


def test_revisions_are_asked_for_the_answer_without_its_thinking() -> None:
    """The policy is trained on all tokens and shown its answers alone."""
    engine = Thinker()
    pipeline = _pipeline([engine], answer_after="</think>")
    groups = asyncio.run(pipeline.run(make_prompts(3), step=3))
    revisions = [revision for group in groups for revision in group.revisions]
    assert revisions
    for group in groups:
        for revision in group.revisions:
            draft = group.group.rollouts[revision.experience.rollout_index]
            assert draft.text.startswith("hm</think>")
            shown = CharTokenizer().decode(revision.experience.prompt_token_ids)
            assert f"Draft:\n{draft.text.removeprefix('hm</think>')}\n" in shown
            assert "think" not in shown


@pytest.mark.parametrize("select", ["best_failed", "random"])
def test_results_do_not_depend_on_arrival_order_or_schedule(select: str) -> None:
    prompts = make_prompts(12)
    hindsight = HINDSIGHT.model_copy(update={"select": select})

    def run(delay_seed: int | None, streamed: bool, count: int = 2) -> list[ScoredGroup]:
        engines = [FakeEngine(None if delay_seed is None else delay_seed + i) for i in range(count)]
        rollout = ROLLOUT.model_copy(update={"streamed": streamed})
        scorer = FakeScorer(delay_seed)
        pipeline = _pipeline(engines, scorer, hindsight=hindsight, rollout=rollout)
        return asyncio.run(pipeline.run(prompts, step=3))

    expected = run(None, streamed=True)
    assert [group.group.prompt.id for group in expected] == [p.id for p in prompts]
    assert sum(len(group.revisions) for group in expected) >= 12
    for delay_seed in range(4):
        for streamed in (True, False):
            assert _plain(run(delay_seed, streamed)) == _plain(expected)
    assert _plain(run(9, streamed=True, count=3)) == _plain(expected)  # nor on the engines


def test_a_prompts_results_do_not_depend_on_its_neighbours() -> None:
    prompts = make_prompts(6)
    whole = asyncio.run(_pipeline([FakeEngine()]).run(prompts, step=3))
    alone = asyncio.run(_pipeline([FakeEngine()]).run(prompts[4:5], step=3))
    assert _without_request_ids(_plain(alone[0])) == _without_request_ids(_plain(whole[4]))


def test_requests_carry_seed_sampling_and_priority() -> None:
    engine = FakeEngine()
    groups = asyncio.run(_pipeline([engine]).run(make_prompts(3), step=5))
    ids = [request.request_id for request in engine.requests]
    assert len(set(ids)) == len(ids)
    first = [request for request in engine.requests if request.priority == 0]
    revisions = [request for request in engine.requests if request.priority == 1]
    assert len(first) == 3 * 4 and len(revisions) == sum(len(g.revisions) for g in groups) > 0
    assert {request.sampling for request in first} == {SamplingSettings(0.9, 0.95, 30, 8)}
    assert {request.sampling for request in revisions} == {SamplingSettings(0.3, 1.0, -1, 8)}
    assert [request.seed for request in first[:4]] == [
        request_seed(11, step=5, prompt_id="q0", kind="rollout", index=i) for i in range(4)
    ]
    seeds = {request.request_id: request.seed for request in engine.requests}
    for group in groups:
        for k, revision in enumerate(group.revisions):
            completion = revision.rollout.completion
            index = revision.experience.rollout_index * 2 + k % 2
            assert seeds[completion.request_id] == request_seed(
                11, step=5, prompt_id=group.group.prompt.id, kind="revision", index=index
            )
    assert len(set(seeds.values())) == len(seeds)


def test_revisions_answer_their_experience_and_are_scored_by_the_rubric() -> None:
    engine, scorer = FakeEngine(), FakeScorer()
    groups = asyncio.run(_pipeline([engine], scorer).run(make_prompts(6), step=0))
    prompts = {request.request_id: request.prompt_token_ids for request in engine.requests}
    for group in groups:
        best = max((s.reward for s in group.scores if isinstance(s, Scored)), default=1.0)
        assert bool(group.revisions) == (best < 1.0)
        for position, revision in enumerate(group.revisions):
            assert revision.rollout.index == position
            asked = prompts[revision.rollout.completion.request_id]
            assert (asked == revision.experience.prompt_token_ids).all()
            draft = group.group.rollouts[revision.experience.rollout_index]
            assert f"Draft:\n{draft.text}\n\n" in revision.experience.prompt_text
            score = group.scores[draft.index]
            assert isinstance(score, Scored) and score.reward == best
            assert revision.score == scorer.score(revision.rollout.text)
        assert group.scores == tuple(scorer.score(r.text) for r in group.group.rollouts)


def test_a_group_stays_with_its_engine_and_engines_get_equally_many() -> None:
    """Revisions included; the busiest engine decides how long a step takes."""
    engines = [FakeEngine(), FakeEngine(), FakeEngine()]
    asyncio.run(_pipeline(engines).run(make_prompts(9), step=4))
    served = [{r.request_id.split("-")[1] for r in engine.requests} for engine in engines]
    assert served == [
        {"prompt2", "prompt5", "prompt8"},  # (4 + position) % 3
        {"prompt0", "prompt3", "prompt6"},
        {"prompt1", "prompt4", "prompt7"},
    ]
    assert any("-revision" in r.request_id for engine in engines for r in engine.requests)


def test_a_prompt_drawn_twice_gets_other_samples() -> None:
    prompt = make_prompts(1)[0]
    engine = FakeEngine()
    once, twice = asyncio.run(_pipeline([engine]).run([prompt, prompt], step=0))
    assert [r.text for r in once.group.rollouts] != [r.text for r in twice.group.rollouts]
    assert len({request.seed for request in engine.requests}) == len(engine.requests)
    assert len({request.request_id for request in engine.requests}) == len(engine.requests)


class _SlowFor(FakeEngine):
    """Holds first samples of one prompt until it is told to go on."""

    def __init__(self, held: str, events: list[str]) -> None:
        super().__init__(events=events)
        self._held = held
        self.release = asyncio.Event()

    async def wait(self, requests: Sequence[GenerateRequest]) -> None:
        if f"-{self._held}-rollout" in requests[0].request_id:
            await self.release.wait()


def _hard_prompts() -> list[Prompt]:
    """q0 and q1: with seed 11 and step 0 both groups fail and get revisions."""
    return make_prompts(2)


def test_revisions_start_while_other_groups_still_decode() -> None:
    async def main() -> list[str]:
        events: list[str] = []
        engine = _SlowFor("prompt1", events)
        pipeline = _pipeline([engine], FakeScorer(events=events))
        done = pipeline.run(_hard_prompts(), step=0, on_group=lambda _: engine.release.set())
        await asyncio.wait_for(done, 5)  # the first group must finish before the second is let go
        return events

    events = asyncio.run(main())
    assert events.index("end step0-prompt0 revision") < events.index("end step0-prompt1 rollout0")


def test_barriers_hold_every_phase_back() -> None:
    events: list[str] = []
    rollout = ROLLOUT.model_copy(update={"streamed": False})
    pipeline = _pipeline([FakeEngine(3, events)], FakeScorer(4, events), rollout=rollout)
    asyncio.run(pipeline.run(make_prompts(6), step=0))
    # Six groups of four end and are scored, then revisions start, end and are scored.
    first, scored = events[:48], events[48:54]
    assert {event.split()[2] for event in first} == {f"rollout{i}" for i in range(4)}
    assert [event.split()[0] for event in scored] == ["score"] * 6
    later = [event.split()[0] for event in events[54:]]
    groups = later.count("score")
    assert groups >= 4 and later[-groups:] == ["score"] * groups
    assert later.count("start") == later.count("end") >= groups


def test_without_hindsight_nothing_is_revised() -> None:
    for hindsight in (None, HindsightConfig(enabled=False)):
        engine = FakeEngine()
        sampling = SamplingSettings(temperature=0.0, max_tokens=5)
        pipeline = _pipeline([engine], hindsight=hindsight, group_size=1, sampling=sampling)
        groups = asyncio.run(pipeline.run(make_prompts(3), step=0))
        assert [len(group.scores) for group in groups] == [1, 1, 1]
        assert all(group.revisions == () for group in groups)
        assert {request.sampling for request in engine.requests} == {sampling}
        assert len(engine.requests) == 3


def test_evaluation_seed_is_the_only_thing_that_moves_the_samples() -> None:
    def texts(seed: int, step: int) -> list[str]:
        pipeline = _pipeline([FakeEngine()], hindsight=None, seed=seed)
        groups = asyncio.run(pipeline.run(make_prompts(2), step=step))
        return [rollout.text for group in groups for rollout in group.group.rollouts]

    assert texts(1, 0) == texts(1, 0)
    assert texts(1, 0) != texts(2, 0) and texts(1, 0) != texts(1, 1)


def test_too_long_experiences_are_counted_and_not_sampled() -> None:
    engine = FakeEngine()
    groups = asyncio.run(_pipeline([engine], max_experience_tokens=20).run(_hard_prompts(), 0))
    assert all(group.revisions == () for group in groups)
    assert sum(group.experiences_too_long for group in groups) >= 2
    assert all(request.priority == 0 for request in engine.requests)


def test_reference_compat_samples_revisions_like_first_samples_without_template() -> None:
    engine = FakeEngine()
    hindsight = effective(HindsightConfig(reference_compat=True), ROLLOUT)
    asyncio.run(_pipeline([engine], hindsight=hindsight).run(_hard_prompts(), step=0))
    revisions = [request for request in engine.requests if request.priority == 1]
    assert revisions and {r.sampling for r in revisions} == {ROLLOUT.sampling()}
    for request in revisions:
        text = CharTokenizer().decode(request.prompt_token_ids)
        assert text.startswith("Question ") and "user>" not in text


def test_progress_and_statistics() -> None:
    seen: list[ScoredGroup] = []
    pipeline = _pipeline([FakeEngine(1)], FakeScorer(2))
    groups = asyncio.run(pipeline.run(make_prompts(5), step=0, on_group=seen.append))
    assert sorted(g.group.prompt.id for g in seen) == [f"q{i}" for i in range(5)]
    assert pipeline.stats is not None
    lengths = [len(r.completion.token_ids) for g in groups for r in g.group.rollouts]
    revised = [len(r.rollout.completion.token_ids) for g in groups for r in g.revisions]
    metrics = pipeline.stats.metrics()
    assert metrics["rollout/tokens"] == sum(lengths)
    assert metrics["rollout/revision_tokens"] == sum(revised) > 0
    assert 0 < metrics["time/generation_s"] <= metrics["time/pipeline_s"]
    assert 0 < metrics["time/scoring_exposed_s"] <= metrics["time/scoring_s"]
    assert asyncio.run(pipeline.run([], step=0)) == []


class _Failing(FakeEngine):
    """Fails (or hangs) at the first samples of one prompt, after the others had time to end."""

    def __init__(self, prompt: str, how: str) -> None:
        super().__init__()
        self._prompt, self._how = prompt, how
        self.cancelled = 0

    async def wait(self, requests: Sequence[GenerateRequest]) -> None:
        if f"-{self._prompt}-" not in requests[0].request_id:
            if "-prompt0-" in requests[0].request_id:
                await asyncio.sleep(0.01)  # the first prompt is not the first to finish
            return
        try:
            if self._how == "hang":
                await asyncio.sleep(60)
            await asyncio.sleep(0.5)  # ample for the others, on a busy machine too
            raise ConnectionError("actor died")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def test_a_failing_engine_is_named_and_finished_groups_are_kept() -> None:
    engine = _Failing("prompt2", "raise")
    with pytest.raises(PipelineError) as caught:
        asyncio.run(_pipeline([engine]).run(make_prompts(4), step=0))
    error = caught.value
    assert (error.prompt_id, error.phase, error.engine_index) == ("q2", "first samples", 0)
    assert "'q2', first samples: engine 0 failed: ConnectionError: actor died" in str(error)
    assert isinstance(error.__cause__, ConnectionError)
    expected = asyncio.run(_pipeline([FakeEngine()]).run(make_prompts(4), step=0))
    assert _plain(error.finished) == _plain([expected[0], expected[1], expected[3]])
    assert engine.aborted == [f"step0-prompt2-rollout{i}" for i in range(4)]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_stuck_engine_ends_the_wait(streamed: bool) -> None:
    engine = _Failing("prompt1", "hang")
    rollout = ROLLOUT.model_copy(update={"timeout_s": 0.2, "streamed": streamed})
    start = time.monotonic()
    with pytest.raises(PipelineError, match=r"'q1', first samples: engine 0 gave no .* 0.2 s"):
        asyncio.run(_pipeline([engine], rollout=rollout).run(make_prompts(3), step=0))
    assert time.monotonic() - start < 2
    assert engine.cancelled == 4
    assert engine.aborted == [f"step0-prompt1-rollout{i}" for i in range(4)]


def test_the_first_failure_cancels_the_rest() -> None:
    async def main() -> tuple[_Failing, set[asyncio.Task[Any]]]:
        failing, hanging = _Failing("prompt0", "raise"), _Failing("prompt1", "hang")
        pipeline = _pipeline([failing, hanging])
        with pytest.raises(PipelineError, match="'q0'"):
            await pipeline.run(make_prompts(2), step=0)
        return hanging, asyncio.all_tasks() - {asyncio.current_task()}

    hanging, left = asyncio.run(main())
    assert hanging.cancelled == 4 and not left
    assert hanging.aborted == [f"step0-prompt1-rollout{i}" for i in range(4)]


class _FailingScorer(FakeScorer):
    def __init__(self, prompt: str, how: str) -> None:
        super().__init__()
        self._prompt, self._how = prompt, how

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        scores = await super().score_group(prompt, texts)
        if prompt.id != self._prompt:
            return scores
        await asyncio.sleep(0.05)
        if self._how == "short":
            return scores[:-1]
        if self._how == "hang":
            await asyncio.sleep(60)
        raise TimeoutError("the pool's own limit")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "'q1', scoring: the scorer failed: TimeoutError: the pool's own limit"),
        ("short", "'q1', scoring: the scorer gave 3 scores for 4 texts"),
        ("hang", "'q1', scoring: the scorer gave no result within 0.3 s"),
    ],
)
def test_a_failing_scorer_is_named(how: str, message: str) -> None:
    rollout = ROLLOUT.model_copy(update={"timeout_s": 0.3})
    pipeline = _pipeline([FakeEngine()], _FailingScorer("q1", how), rollout=rollout)
    with pytest.raises(PipelineError, match=message) as caught:
        asyncio.run(pipeline.run(make_prompts(3), step=0))
    assert caught.value.engine_index is None
    assert [group.group.prompt.id for group in caught.value.finished] == ["q0", "q2"]


@pytest.mark.parametrize("paused_s", [0.0, 10.0])
def test_time_that_scoring_is_paused_does_not_count(paused_s: float) -> None:
    """Scoring takes 1 s, the limit is 0.3 s: too long, unless the scorer was paused in it."""

    class Slow(FakeScorer):
        async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
            await asyncio.sleep(1)
            return await super().score_group(prompt, texts)

        def paused_s(self) -> float:
            return min(time.monotonic() - start, paused_s)

    start = time.monotonic()
    rollout = ROLLOUT.model_copy(update={"timeout_s": 0.3})
    pipeline = _pipeline([FakeEngine()], Slow(), rollout=rollout)
    if paused_s:
        groups = asyncio.run(pipeline.run(make_prompts(2), step=0))
        assert [group.group.prompt.id for group in groups] == ["q0", "q1"]
    else:
        with pytest.raises(PipelineError, match="the scorer gave no result within 0.3 s"):
            asyncio.run(pipeline.run(make_prompts(2), step=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finish_reason": "abort"}, "aborted request step0-prompt0-rollout0"),
        ({"request_id": "other"}, "returned requests"),
        ({"log_probs": np.zeros(99, np.float32)}, "tokens and 99 log-probs"),
        ({"token_ids": np.zeros(0, np.int32), "log_probs": np.zeros(0, np.float32)}, "gave 0"),
        (
            {
                "token_ids": np.arange(3, dtype=np.int32),
                "log_probs": np.array([-1, np.nan, -np.inf], np.float32),
            },
            "not finite for 8 of 12 sampled tokens .first: step0-prompt0-rollout0, weight version"
            " 5.*learn|optimizer.lr",
        ),
    ],
)
def test_an_engines_wrong_answer_is_refused(change: dict[str, Any], message: str) -> None:
    class Wrong(FakeEngine):
        def complete(self, request: GenerateRequest) -> Completion:
            return dataclasses.replace(super().complete(request), **change)

    with pytest.raises(PipelineError, match=message):
        asyncio.run(_pipeline([Wrong()]).run(make_prompts(1), step=0))


def test_an_engine_that_cannot_abort_does_not_hide_the_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Dead(_Failing):
        async def abort(self, request_ids: Sequence[str]) -> None:
            raise ConnectionError("gone")

    with pytest.raises(PipelineError, match="actor died"):
        asyncio.run(_pipeline([Dead("prompt0", "raise")]).run(make_prompts(1), step=0))
    assert "engine 0 did not abort" in caplog.text


def test_cancelling_the_step_aborts_its_requests() -> None:
    async def main() -> FakeEngine:
        engine = _Failing("prompt0", "hang")
        task = asyncio.create_task(_pipeline([engine]).run(make_prompts(1), step=0))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return engine

    assert asyncio.run(main()).aborted == [f"step0-prompt0-rollout{i}" for i in range(4)]


def test_bad_input_is_refused_before_anything_is_sampled() -> None:
    with pytest.raises(ValueError, match="no engine"):
        _pipeline([])
    with pytest.raises(AssertionError, match="reference_compat"):
        _pipeline([FakeEngine()], hindsight=HindsightConfig(reference_compat=True))
    engine = FakeEngine()
    ends_wrong = Prompt("bad", (Message("system", "x"),), Rubric(CRITERIA))
    with pytest.raises(ValueError, match="'bad' ends with 'system'"):
        asyncio.run(_pipeline([engine]).run([*make_prompts(1), ends_wrong], step=0))
    assert engine.requests == []
