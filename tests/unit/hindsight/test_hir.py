"""HiR replays: the reduced instruction word for word, the choice of failures, the rows, by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from herl_megatron.batching.rows import build_rows
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig, RolloutConfig
from herl_megatron.data.toy import draw_prompt
from herl_megatron.hindsight.hir import (
    build_replays,
    check_replayable,
    reduced_messages,
    without_wordings,
)
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.types import (
    Criterion,
    Message,
    Prompt,
    Replay,
    Rollout,
    RowOrigin,
    Rubric,
    Score,
    Scored,
)
from tests.unit.hindsight.groups import make_group, make_score
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer

REPLAY = HindsightConfig(method="replay", replays_per_group=2)
TEXT = "Say hello. Be short. Be polite."


@pytest.mark.parametrize(
    ("text", "dropped", "reduced"),
    [
        (TEXT, ["Be short."], "Say hello. Be polite."),
        (TEXT, ["Be polite."], "Say hello. Be short."),
        (TEXT, ["Be short.", "Be polite."], "Say hello."),
        # The criterion has no full stop of its own; the sentence's goes with it.
        ("Say hello. Be short. Be kind.", ["Be short"], "Say hello. Be kind."),
        # One entry to a line, with and without numbers, below the task or above it.
        ("Say hello.\n\n- Be short.\n- Be kind.", ["Be short."], "Say hello.\n\n- Be kind."),
        (
            "Say hello.\n\nRules:\n1. Be short.\n2. Be kind.\n3. Be brave.",
            ["Be kind."],
            "Say hello.\n\nRules:\n1. Be short.\n2. Be brave.",
        ),
        ("Say hello.\n\nBe short.\nBe kind.", ["Be kind."], "Say hello.\n\nBe short."),
        ("Be short. Be kind.\n\nSay hello.", ["Be short."], "Be kind.\n\nSay hello."),
        # Numbers that do not count 1, 2, 3 are not a list of ours.
        ("In 3 lines:\n7. Be short.\n9. Be kind.", ["Be short."], "In 3 lines:\n9. Be kind."),
        # Not there, there twice, or part of what stays.
        (TEXT, ["Be brave."], None),
        ("Be short. Say hello. Be short.", ["Be short."], None),
        ("Be short.", ["Be short."], None),
    ],
)
def test_what_is_missed_is_taken_out_of_the_text(
    text: str, dropped: list[str], reduced: str | None
) -> None:
    kept = [wording for wording in ("Be kind.", "Be brave.") if wording not in dropped]
    assert without_wordings(text, dropped, kept) == reduced


def test_a_wording_inside_another_one_is_not_taken_out() -> None:
    text = "Say hello. Do not be short."
    assert without_wordings(text, ["be short"], ["Do not be short."]) is None


def test_every_toy_prompt_is_reduced_to_what_a_smaller_one_would_say() -> None:
    """Left is exactly the text of a prompt drawn without the missed requirements."""
    rng = random.Random(0)
    for _ in range(200):
        toy = draw_prompt(rng)
        missed = set(rng.sample(range(len(toy.wishes)), rng.randrange(1, len(toy.wishes))))
        prompt = toy.to_prompt("full")
        names = [criterion.id for criterion in prompt.rubric.criteria]
        messages = reduced_messages(
            prompt,
            satisfied=[n for i, n in enumerate(names) if i not in missed],
            unmet=[n for i, n in enumerate(names) if i in missed],
        )
        smaller = replace(
            toy, wishes=tuple(wish for i, wish in enumerate(toy.wishes) if i not in missed)
        )
        assert messages == smaller.to_prompt("small").messages


PROMPT = Prompt(
    "p0",
    (Message("system", "You help."), Message("user", TEXT)),
    Rubric(
        (
            Criterion("short", "judge", description="Be short."),
            Criterion("polite", "judge", description="Be polite.", weight=2.0),
        )
    ),
)


def test_a_row_may_name_its_task_instead() -> None:
    told = replace(PROMPT, messages=(Message("user", "Greet me tersely and nicely."),))
    assert reduced_messages(told, satisfied=["short"], unmet=["polite"]) is None
    named = replace(told, extra={"instruction": "Greet me."})
    (message,) = reduced_messages(named, satisfied=["short"], unmet=["polite"]) or ()
    assert message == Message("user", "Greet me.\n\n- Be short.")


def scored(reward: float, *satisfied: str) -> Scored:
    unmet = tuple(name for name in ("short", "polite") if name not in satisfied)
    return Scored(reward, (), satisfied, unmet)


def replays_of(
    scores: Sequence[Score], *, max_tokens: int = 1000
) -> tuple[tuple[Replay, ...], int]:
    group = make_group([0.0] * len(scores), prompt=PROMPT).group
    return build_replays(group, scores, REPLAY, CharTokenizer(), step=0, max_tokens=max_tokens)


def test_only_failures_that_met_something_are_replayed() -> None:
    scores = [scored(0.0), scored(1.0, "short", "polite"), scored(0.3, "short"), make_score(None)]
    (replay,), impossible = replays_of(scores)
    assert (replay.rollout_index, replay.satisfied, impossible) == (2, ("short",), 0)
    assert replay.prompt_text == "You help.\n\nSay hello. Be short."
    asked = "system>You help.|user>Say hello. Be short.|assistant>"
    assert CharTokenizer().decode(replay.prompt_token_ids) == asked


def test_the_choice_weighs_what_is_met_against_surprise_more_with_every_step() -> None:
    """Three criteria: rollout 0 meets two, 1 and 2 meet one; surprise 0.1, 0.2 and 0.9 a token."""
    criteria = tuple(Criterion(n, "judge", description=f"Be {n}.") for n in ("a", "b", "c"))
    prompt = Prompt("p", (Message("user", "Go. Be a. Be b. Be c."),), Rubric(criteria))
    group = make_group([0.0] * 3, prompt=prompt).group

    def surprising(rollout: Rollout, nats: float) -> Rollout:
        log_probs = np.array([-nats - 0.05, -nats + 0.05], np.float32)
        return replace(rollout, completion=replace(rollout.completion, log_probs=log_probs))

    rollouts = tuple(map(surprising, group.rollouts, (0.1, 0.2, 0.9)))
    group = replace(group, rollouts=rollouts)
    scores = [
        Scored(0.6, (), ("a", "b"), ("c",)),
        Scored(0.3, (), ("a",), ("b", "c")),
        Scored(0.3, (), ("b",), ("a", "c")),
    ]

    def chosen(step: int, **options: Any) -> list[int]:
        config = HindsightConfig(method="replay", replays_per_group=2, **options)
        found, _ = build_replays(group, scores, config, CharTokenizer(), step=step, max_tokens=1000)
        return [replay.rollout_index for replay in found]

    # weight 2: 2 * 2/3 + 0.1 = 1.43, 2 * 1/3 + 0.2 = 0.87, 2 * 1/3 + 0.9 = 1.57
    assert chosen(0) == [2, 0]
    # weight 2 * 1.05^9 = 3.10: 2.17, 1.23, 1.93
    assert chosen(9) == [0, 2]
    assert chosen(0, replay_integrity=0.0) == [2, 1]
    assert chosen(10**9) == [0, 2]  # no overflow


def test_a_response_without_an_answer_is_the_success_of_nothing() -> None:
    group = make_group([0.0] * 4, prompt=PROMPT).group
    texts = ("thinking", "thinking</think> \n", "thinking</think>Hi.", "</think>Hi.")
    rollouts = tuple(
        replace(rollout, text=text) for rollout, text in zip(group.rollouts, texts, strict=True)
    )
    found, impossible = build_replays(
        replace(group, rollouts=rollouts), [scored(0.3, "short")] * 4, REPLAY, CharTokenizer(),
        step=0, max_tokens=1000, answer_after="</think>",
    )  # fmt: skip
    assert (sorted(replay.rollout_index for replay in found), impossible) == ([2, 3], 0)


def test_what_cannot_be_reduced_is_counted() -> None:
    scores = [scored(0.3, "short")] * 3
    assert replays_of(scores, max_tokens=10) == ((), 3)


def test_replays_join_the_group_as_successes() -> None:
    """Rewards 0, 0, 0 have no spread; with a replay of row 1 the mean is 0.25 and the sample
    standard deviation 0.5: advantages -0.5 and 1.5 (eps 1e-4)."""
    ids = np.array([7, 8], np.int32)
    group = replace(make_group([0.0, 0.0, 0.0]), replays=(Replay(1, "smaller", ids, ("short",)),))
    built = build_rows(group, REPLAY, AlgorithmConfig(), 0)
    assert [row.reward for row in built.rows] == [0.0, 0.0, 0.0, 1.0]
    wanted = [-0.25 / 0.5001] * 3 + [0.75 / 0.5001]
    assert [row.advantage for row in built.rows] == pytest.approx(wanted)
    assert built.origins[3] == RowOrigin(1, replay_index=0)
    replay, draft = built.rows[3], built.rows[1]
    assert replay.context_token_ids.tolist() == [7, 8]
    assert draft.context_token_ids.tolist() == [1, 2, 3]
    assert replay.response_token_ids.tolist() == draft.response_token_ids.tolist()
    assert replay.rollout_log_probs.tolist() == draft.rollout_log_probs.tolist()
    assert (replay.off_policy, draft.off_policy) == (True, False)
    assert built.stats.replays == 1
    # Without them in the baseline there is no spread, so there is nothing to compare with.
    alone = AlgorithmConfig(baseline="on_policy")
    assert build_rows(group, REPLAY, alone, 0).stats.outcome == "zero_spread"


def test_the_pipeline_replays_instead_of_sampling_revisions() -> None:
    criteria = tuple(Criterion(f"c{i}", "judge", description=f"Rule {i}.") for i in range(4))
    text = "Question. Rule 0. Rule 1. Rule 2. Rule 3."
    prompts = [Prompt("q", (Message("user", text),), Rubric(criteria))]
    engine, scorer = FakeEngine(), FakeScorer()
    rollout = RolloutConfig(group_size=8, max_response_tokens=8)
    pipeline = RolloutPipeline(
        [engine], scorer, CharTokenizer(), rollout,
        open_stage(REPLAY, rollout, max_tokens=10_000), seed=3,
    )  # fmt: skip
    (group,) = asyncio.run(pipeline.run(prompts, step=2))
    assert len(engine.requests) == 8 and group.revisions == ()
    wanted = build_replays(
        group.group, group.scores, REPLAY, CharTokenizer(), step=2, max_tokens=10_000
    )
    assert len(group.replays) == 2
    assert [r.rollout_index for r in group.replays] == [r.rollout_index for r in wanted[0]]
    for replay in group.replays:
        score = group.scores[replay.rollout_index]
        assert isinstance(score, Scored)
        met = [f" Rule {i}." for i in range(4) if f"c{i}" in score.satisfied]
        assert replay.prompt_text == "Question." + "".join(met)


def test_rows_for_which_replay_means_nothing_are_refused() -> None:
    check_replayable([PROMPT])
    graded = replace(PROMPT, rubric=replace(PROMPT.rubric, aggregation="healthbench"))
    with pytest.raises(ValueError, match="'healthbench' does not have; use one of explicit"):
        check_replayable([PROMPT, graded])
    vague = replace(PROMPT, messages=(Message("user", "Greet me nicely."),))
    with pytest.raises(ValueError, match="none of the 1 prompts states a criterion"):
        check_replayable([vague])
    check_replayable([vague, PROMPT])
