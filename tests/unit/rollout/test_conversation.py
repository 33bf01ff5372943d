"""Rollouts of several turns: which tokens, seeds and text they have, and how they end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from herl_megatron.batching.rows import build_train_batch
from herl_megatron.commands.evaluate import summarize
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from herl_megatron.observability.rollout_log import group_record
from herl_megatron.rollout.carry import dump_progress, load_progress
from herl_megatron.rollout.conversation import Conversation, ConversationFull, Drawn, rollout_of
from herl_megatron.rollout.liveness import responses_by_prompt
from herl_megatron.rollout.pipeline_run import GroupJob, PipelineRun
from herl_megatron.rollout.pipeline_stats import WorkClock
from herl_megatron.seeds import derive_seed, request_seed
from herl_megatron.types import (
    Completion,
    GenerateRequest,
    Message,
    Prompt,
    SamplingSettings,
    Segment,
    Turn,
)
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer, make_prompts
from tests.unit.rollout.talks import (
    ROLLOUT,
    TOLD,
    Speaker,
    groups_of,
    pipeline_of,
    two_turns,
)


def test_two_turns_are_one_response(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Speaker()
    (group,) = groups_of(two_turns, engine, monkeypatch)
    text = CharTokenizer().decode
    assert {text(r.prompt_token_ids) for r in engine.requests} == {
        "user>Question 0.|assistant>",
        f"user>Question 0.|assistant>ab{TOLD}",
    }
    for rollout in group.group.rollouts:
        response = rollout.completion
        assert text(response.token_ids) == f"ab{TOLD}cd" and response.finish_reason == "stop"
        assert response.drawn is not None
        assert response.drawn.tolist() == [True] * 2 + [False] * 21 + [True] * 2
        assert response.log_probs.tolist() == [-0.5, -1.0, -1.5, -2.0]
        assert text(response.drawn_token_ids) == "abcd"
        assert response.segments == (Segment(4, 4),)
        assert response.request_id == f"step3-prompt0-rollout{rollout.index}"
        # Scored is the last turn: c + d = 199, of whose low bits 0, 1 and 2 are set.
        assert rollout.text == "cd"
        assert rollout.turns == (Turn(True, "ab", 2), Turn(False, TOLD, 21), Turn(True, "cd", 2))
        assert group.scores[rollout.index] == FakeScorer().score("cd")
        assert getattr(group.scores[rollout.index], "reward", None) == 0.75


def test_seeds_are_those_of_the_response_and_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def three(talk: Conversation) -> None:
        await talk.generate()
        await talk.aside([Message("user", "plan")])
        talk.tell("again")
        await talk.generate()

    engine = Speaker()
    rollout = ROLLOUT.model_copy(update={"temperature": 0.7, "top_p": 0.9, "top_k": 5})
    groups_of(three, engine, monkeypatch, rollout=rollout)
    first = [
        request_seed(9, step=3, prompt_id="q0", kind="rollout", index=index) for index in (0, 1)
    ]
    wanted = {
        f"step3-prompt0-rollout{i}-turn{n}": (derive_seed(seed, "turn", n) if n else seed)
        for i, seed in enumerate(first)
        for n in range(3)
    }
    assert {r.request_id: r.seed for r in engine.requests} == wanted
    # 40 tokens in all: two were drawn and 21 told before the third call; an aside has its own.
    limits = {r.request_id[-5:]: r.sampling for r in engine.requests}
    assert limits == {
        "turn0": SamplingSettings(0.7, 0.9, 5, 40),
        "turn1": SamplingSettings(0.7, 0.9, 5, 40),
        "turn2": SamplingSettings(0.7, 0.9, 5, 17),
    }
    asked = {r.request_id[-5:]: CharTokenizer().decode(r.prompt_token_ids) for r in engine.requests}
    assert asked["turn1"] == "user>plan|assistant>"
    assert asked["turn2"] == f"user>Question 0.|assistant>ab{TOLD}"  # without the aside


def test_one_turn_is_what_is_drawn_without_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    async def once(talk: Conversation) -> None:
        await talk.generate()

    prompts = make_prompts(3)
    options: dict[str, Any] = {"hindsight": HindsightConfig(), "prompts": prompts}
    plain = groups_of(None, FakeEngine(), monkeypatch, **options)
    own = groups_of(once, FakeEngine(7), monkeypatch, **options)
    assert [json.dumps(group_record(g)) for g in own] == [
        json.dumps(group_record(g)) for g in plain
    ]
    drawn = [
        [(c.request_id, c.token_ids.tobytes(), c.log_probs.tobytes())
         for g in groups for c in (r.completion for r in g.group.rollouts)]
        for groups in (plain, own)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] and any(g.revisions for g in own)


def test_results_do_not_depend_on_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talkative(talk: Conversation) -> None:
        said = await talk.generate(max_tokens=3)
        while said.finish_reason == "stop" and talk.left_tokens > 30:
            talk.tell(said.text)
            said = await talk.generate(max_tokens=6)

    rollout = ROLLOUT.model_copy(update={"max_response_tokens": 90, "group_size": 4})
    hindsight = HindsightConfig(max_experiences=2)

    def records(delay: int | None, streamed: bool) -> list[str]:
        groups = groups_of(
            talkative, FakeEngine(delay), monkeypatch, prompts=make_prompts(5),
            rollout=rollout.model_copy(update={"streamed": streamed}), hindsight=hindsight,
            scorer=FakeScorer(delay),
        )  # fmt: skip
        return [json.dumps(group_record(group)) for group in groups]

    expected = records(None, True)
    assert any('"turns"' in record for record in expected)
    for delay in (1, 2):
        assert records(delay, True) == expected == records(delay, False)


def test_rows_train_on_what_was_drawn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 0.75 and 0.25; sample mean 0.5, std 0.353553, advantages +-0.25 / 0.353653."""

    class TwoEnds(Speaker):
        def complete(self, request: GenerateRequest) -> Completion:
            answer = super().complete(request)
            last = request.request_id.endswith("rollout1-turn1")
            # "cc" sums to 198, which is 11 * 18 and so unscored; "cg" to 202: bits 1 and 3.
            return replace(answer, token_ids=np.array([99, 103], np.int32)) if last else answer

    (group,) = groups_of(two_turns, TwoEnds(), monkeypatch)
    step = build_train_batch(
        [group], HindsightConfig(enabled=False), AlgorithmConfig(),
        prompts_per_optimizer_step=1, run_seed=0, step=0,
    )  # fmt: skip
    assert [row.reward for row in step.batch.rows] == [0.75, 0.5]
    for row, end in zip(step.batch.rows, ("cd", "cg"), strict=True):
        text = CharTokenizer().decode
        assert text(row.context_token_ids) == "user>Question 0.|assistant>"
        assert text(row.response_token_ids) == f"ab{TOLD}{end}"
        assert text(row.targets) == f"ab{end}"
        assert row.rollout_log_probs.tolist() == [-0.5, -1.0, -1.5, -2.0]
        assert row.tokens == 27 + 25
    assert step.metrics["train/tokens"] == 8
    assert step.metrics["rollout/response_tokens"] == 4
    assert summarize([group]).response_tokens == 4
    # What tells a dead policy is its own words.
    ((one, _),) = responses_by_prompt([group])
    assert text(one.token_ids) == "abcd" and one.drawn is None
    record = group_record(group, step.groups[0].rows, step.groups[0].origins)
    assert record["rollouts"][0]["turns"] == [
        {"drawn": True, "text": "ab", "tokens": 2},
        {"drawn": False, "text": TOLD, "tokens": 21},
        {"drawn": True, "text": "cd", "tokens": 2},
    ]
    assert record["rollouts"][0]["text"] == "cd" and record["rollouts"][0]["tokens"] == 25


def test_a_draft_is_the_last_turn_and_a_replay_keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = ROLLOUT.model_copy(update={"group_size": 1})
    (group,) = groups_of(
        two_turns, Speaker(), monkeypatch, hindsight=HindsightConfig(), rollout=rollout
    )
    (revision,) = group.revisions
    assert "Draft:\ncd\n\n" in revision.experience.prompt_text
    assert revision.rollout.turns == () and revision.rollout.text == "ab"
    prompt = make_prompts(1)[0]
    prompt = replace(prompt, messages=(Message("user", "Go. Rule 0. Rule 1. Rule 2. Rule 3."),))
    hir = HindsightConfig(method="replay")
    (group,) = groups_of(
        two_turns, Speaker(), monkeypatch, hindsight=hir, prompts=[prompt], rollout=rollout
    )
    (replay,) = group.replays
    assert replay.prompt_text == "Go. Rule 0. Rule 1. Rule 2."
    step = build_train_batch(
        [group], hir, AlgorithmConfig(), prompts_per_optimizer_step=1, run_seed=0, step=0
    )
    rows = step.groups[0].rows
    assert [row.off_policy for row in rows] == [False, True]
    assert rows[1].drawn is not None and rows[1].drawn.sum() == 4
    assert rows[1].targets.tolist() == rows[0].targets.tolist()
    assert CharTokenizer().decode(rows[1].context_token_ids) == (
        "user>Go. Rule 0. Rule 1. Rule 2.|assistant>"
    )


@pytest.mark.parametrize(
    ("limit", "text", "reason"),
    [
        (25, f"ab{TOLD}cd", "stop"),  # two, 21 told, two
        (24, f"ab{TOLD}c", "length"),  # one is left for the answer, which is cut
        (23, "ab", "length"),  # what would be told leaves no room for an answer
        (2, "ab", "length"),
        (1, "a", "length"),
    ],
)
def test_all_turns_share_the_limit(
    limit: int, text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = ROLLOUT.model_copy(update={"max_response_tokens": limit})
    engine = Speaker()
    (group,) = groups_of(two_turns, engine, monkeypatch, rollout=rollout)
    response = group.group.rollouts[0].completion
    assert CharTokenizer().decode(response.token_ids) == text
    assert response.finish_reason == reason
    assert (response.drawn is None) == (TOLD not in text)
    assert all(
        len(r.prompt_token_ids) + r.sampling.max_tokens <= 27 + limit for r in engine.requests
    )


def test_a_turn_that_was_cut_is_closed_before_anything_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Drawn] = []

    async def short(talk: Conversation) -> None:
        seen.append(await talk.generate(max_tokens=1))
        talk.tell("again")
        await talk.generate()
        talk.tell("and nobody answers")

    rollout = ROLLOUT.model_copy(update={"max_response_tokens": 80})
    (group,) = groups_of(short, Speaker(), monkeypatch, rollout=rollout)
    assert seen[0] == Drawn("a", 1, "length")
    response = group.group.rollouts[0].completion
    # The fake template ends a turn with "|".
    assert CharTokenizer().decode(response.token_ids) == f"a|{TOLD}cd"
    assert response.finish_reason == "stop"


def test_an_answer_may_be_begun_for_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def begun(talk: Conversation) -> None:
        talk.tell_ids(CharTokenizer().plain_ids("So: "))
        await talk.generate()

    engine = Speaker()
    (group,) = groups_of(begun, engine, monkeypatch)
    rollout = group.group.rollouts[0]
    assert rollout.turns == (Turn(False, "So: ", 4), Turn(True, "ab", 2)) and rollout.text == "ab"
    asked = CharTokenizer().decode(engine.requests[0].prompt_token_ids)
    assert asked == "user>Question 0.|assistant>So: "


def test_turns_without_a_word_between_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice(talk: Conversation) -> None:
        await talk.generate()
        await talk.generate()
        talk.tell_ids(np.array([33, 33]))
        await talk.generate()

    (group,) = groups_of(twice, Speaker(), monkeypatch)
    rollout = group.group.rollouts[0]
    assert rollout.turns == (Turn(True, "abcd", 4), Turn(False, "!!", 2), Turn(True, "ef", 2))
    assert rollout.text == "ef" and rollout.completion.token_ids.dtype == np.int32


def test_the_judge_hears_the_last_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listening(FakeScorer):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[str] = []

        def start_judging(self, prompt: Prompt, text: str) -> None:
            self.heard.append(text)

    scorer = Listening()
    groups_of(two_turns, Speaker(), monkeypatch, scorer=scorer)
    assert scorer.heard == ["cd", "cd"]


def test_a_checkpoint_keeps_whole_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `one_step_off` saves them: nothing is asked again."""
    pipeline = pipeline_of(two_turns, Speaker(), monkeypatch)
    jobs = pipeline.jobs(make_prompts(2), 3)
    before = asyncio.run(pipeline.run_jobs(jobs))
    saved = json.loads(json.dumps([dump_progress(job.progress) for job in jobs]))
    silent_engine = Speaker()
    resumed = pipeline_of(two_turns, silent_engine, monkeypatch)
    again = [
        resumed.job(j.prompt, step=3, position=j.position, first_index=0, progress=load_progress(p))
        for j, p in zip(jobs, saved, strict=True)
    ]
    after = asyncio.run(resumed.run_jobs(again))
    assert silent_engine.requests == []
    assert [group_record(g) for g in after] == [group_record(g) for g in before]
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old.group.rollouts, new.group.rollouts, strict=True):
            assert a.completion.drawn is not None and b.completion.drawn is not None
            assert a.completion.drawn.tolist() == b.completion.drawn.tolist()
            assert a.completion.log_probs.tobytes() == b.completion.log_probs.tobytes()


def test_a_response_of_one_turn_has_none() -> None:
    whole = Completion("a", np.array([97, 98], np.int32), np.zeros(2, np.float32), "stop", 0)
    rollout = rollout_of(3, whole, CharTokenizer())
    assert (rollout.index, rollout.text, rollout.turns) == (3, "ab", ())


def test_a_conversation_that_is_full_stays_full() -> None:
    """One that catches the exception and goes on ends as cut all the same."""

    async def run() -> Completion:
        engine = Speaker()
        prompt = make_prompts(1)[0]
        job = GroupJob(0, 0, prompt, np.array([1], np.int32), 0, 0)
        stream = PipelineRun(5.0, [engine], WorkClock(), None)

        async def draw(context: Any, *, max_tokens: int, call: int) -> Completion:
            request = GenerateRequest(
                f"r-turn{call}", context, SamplingSettings(max_tokens=max_tokens), 0
            )
            return await stream.ask(job, request, "first samples")

        talk = Conversation(prompt, np.array([1], np.int32), CharTokenizer(), draw, max_tokens=3)
        await talk.generate()
        assert talk.left_tokens == 1
        with pytest.raises(ConversationFull, match="1 of 3 tokens are left"):
            talk.tell("again")
        return talk.response("r")

    response = asyncio.run(run())
    assert response.finish_reason == "length" and response.token_ids.tolist() == [97, 98]
