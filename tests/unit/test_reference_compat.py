"""What the released HeRL code does by accident, and what we decide: one test per row of the table.

Rows marked R are switched by `hindsight.reference_compat` and are tested both ways. Of rows that
belong to the judge or the loss, the piece that lives in hindsight, rows and pipeline is tested.
One worked group serves most of them: rewards 0.25, 0.5, 0.5, 0.0; rollouts 1 and 2 are revised to
1.0 and 0.75; with alpha 0.05 the bonuses are 0.025 and 0.0125.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest

from herl_megatron.algos.advantages import group_advantages
from herl_megatron.batching.rows import GroupRows, build_rows, build_train_batch
from herl_megatron.config.reference_compat import effective, revision_sampling
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig, RolloutConfig
from herl_megatron.hindsight.bonus import bonus_rewards
from herl_megatron.hindsight.revision_prompts import PromptStyle, revision_messages
from herl_megatron.hindsight.select import select_experiences
from herl_megatron.rollout.hindsight_stage import open_stage
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.types import (
    Completion,
    Criterion,
    GenerateRequest,
    Message,
    Prompt,
    Rubric,
    ScoredGroup,
)
from tests.unit.hindsight.groups import make_group, make_score
from tests.unit.rollout.fakes import CharTokenizer, FakeEngine, FakeScorer, make_prompts

OURS = HindsightConfig()
ALGORITHM = AlgorithmConfig()
ROLLOUT = RolloutConfig(group_size=4, temperature=1.0, top_p=0.9, max_response_tokens=8)
RELEASED = effective(HindsightConfig(reference_compat=True), ROLLOUT)


def _worked() -> ScoredGroup:
    return make_group([0.25, 0.5, 0.5, 0.0], [(1, 1.0), (2, 0.75)])


def _rows(group: ScoredGroup, hindsight: HindsightConfig, seed: int = 0) -> GroupRows:
    return build_rows(group, hindsight, ALGORITHM, seed)


def _advantages(group: ScoredGroup, hindsight: HindsightConfig, seed: int = 0) -> list[float]:
    return [row.advantage for row in _rows(group, hindsight, seed).rows]


def _near(*values: float) -> Any:
    return pytest.approx(list(values), abs=5e-7)


def _stream(
    engine: FakeEngine,
    hindsight: HindsightConfig,
    *,
    prompts: int,
    limit: int = 10_000,
    rollout: RolloutConfig = ROLLOUT,
) -> list[ScoredGroup]:
    pipeline = RolloutPipeline(
        [engine],
        FakeScorer(),
        CharTokenizer(),
        rollout,
        open_stage(hindsight, rollout, max_tokens=limit),
        seed=11,
    )
    return asyncio.run(pipeline.run(make_prompts(prompts), step=0))


def test_select_then_bonus_then_join_then_advantage() -> None:
    """The worked group from end to end, ours."""
    group = _worked()
    assert select_experiences(group.scores, OURS, 0) == (1, 2)
    assert bonus_rewards(group, OURS) == pytest.approx((0.0, 0.025, 0.0125, 0.0), abs=1e-12)
    assert [row.reward for row in _rows(group, OURS).rows] == _near(0.25, 0.525, 0.5125, 1.0)
    assert _advantages(group, OURS) == _near(-1.030289, -0.150042, -0.190053, 1.370384)


def test_ratio_denominator() -> None:
    """R: the trainer's log-prob in the same context | the behaviour policy's own, as sampled."""
    assert (OURS.behavior, RELEASED.behavior) == ("sampler", "old")
    group = _worked()
    row = _rows(group, OURS).rows[3]
    sampled = group.revisions[0].rollout.completion.log_probs
    assert row.off_policy and row.rollout_log_probs.tobytes() == sampled.tobytes()


def test_training_context_of_a_revision() -> None:
    """R: the experience prompt stays in the loss | the plain prompt x."""
    ours = [row for row in _rows(_worked(), OURS).rows if row.off_policy]
    released = [row for row in _rows(_worked(), RELEASED).rows if row.off_policy]
    assert [row.context_token_ids.tolist() for row in ours] == [[1, 2, 3]]
    assert [row.context_token_ids.tolist() for row in released] == [[1, 2, 3, 91]]


def test_template_and_sampling_of_revisions() -> None:
    """R: no chat template, temperature ignored | templated, every field reaches the engine."""

    def revision_requests(hindsight: HindsightConfig) -> list[GenerateRequest]:
        engine = FakeEngine()
        _stream(engine, hindsight, prompts=2)
        requests = [request for request in engine.requests if request.priority == 1]
        assert requests
        return requests

    for request in revision_requests(OURS):
        text = CharTokenizer().decode(request.prompt_token_ids)
        assert text.startswith("user>Question ") and text.endswith("|assistant>")
        assert (request.sampling.temperature, request.sampling.top_p) == (0.3, 1.0)
    for request in revision_requests(RELEASED):
        text = CharTokenizer().decode(request.prompt_token_ids)
        assert text.startswith("Question ") and text.endswith("answer.")
        assert request.sampling == ROLLOUT.sampling() == revision_sampling(RELEASED, ROLLOUT)


def test_long_experience_prompts() -> None:
    """Cut from the left for training only | never cut: skipped and counted, x unharmed."""

    def run(limit: int) -> list[ScoredGroup]:
        return _stream(FakeEngine(), OURS, prompts=4, limit=limit)

    free = run(10_000)
    lengths = sorted(len(r.experience.prompt_token_ids) for g in free for r in g.revisions)
    assert len(lengths) >= 3 and lengths[0] < lengths[-1]
    limited = run(lengths[-1] - 1)
    kept = [r.experience.prompt_token_ids for g in limited for r in g.revisions]
    longest = sum(length == lengths[-1] for length in lengths)
    assert sorted(map(len, kept)) == lengths[:-longest]
    assert sum(group.experiences_too_long for group in limited) == longest
    for group in limited:
        for revision in group.revisions:
            text = CharTokenizer().decode(revision.experience.prompt_token_ids)
            assert text.startswith(f"user>{group.group.prompt.messages[0].content}\n\nDraft:")


def test_prompt_template_is_chosen_by_name() -> None:
    """Rubric template unreachable, "Unmet: none" shown | chosen by type, unknown refused."""
    fix = Criterion("a", "judge", description="Name the risk.", weight=5.0)
    prompt = Prompt("p", (Message("user", "Ask."),), Rubric((fix,)))
    plain = revision_messages(prompt, "d", [], [fix], "criteria")[-1].content
    rubric = revision_messages(prompt, "d", [], [fix], "rubric")[-1].content
    assert "- Name the risk.\n" in plain and "- Name the risk. (weight 5)\n" in rubric
    assert "none" not in (plain + rubric).lower()
    with pytest.raises(ValueError, match="unknown prompt style 'IF_hir'"):
        revision_messages(prompt, "d", [], [fix], cast(PromptStyle, "IF_hir"))
    # Nor does a response that misses nothing, or was never judged, become an experience.
    clean = make_score(0.5, ("a",), ())
    assert select_experiences([clean, make_score(None)], OURS, 0) == ()


def test_replaced_slot() -> None:
    """R: random slot, best and its bonus lost in 1 of n groups | the worst row gives way."""
    group = _worked()
    for seed in range(50):
        assert _rows(group, OURS, seed).origins[3].replaces == 3
    slots = Counter(
        origin.replaces
        for seed in range(400)
        for origin in _rows(group, RELEASED, seed).origins
        if origin.replaces is not None
    )
    assert set(slots) == {0, 1, 2, 3} and all(65 <= n <= 135 for n in slots.values())
    # Seed 1 draws slot 1: 0.25, 1.0, 0.5125, 0.0, and the best draft with its bonus is gone.
    assert _advantages(group, RELEASED, 1) == _near(-0.445686, 1.307833, 0.168046, -1.030192)
    # Seeded, so a rerun is the same (the released generator is not).
    assert _advantages(group, RELEASED, 1) == _advantages(group, RELEASED, 1)


def test_no_qualified_revision() -> None:
    """R: a copy of the best row overwrites a random slot | the group is unchanged."""
    group = make_group([0.25, 0.5, 0.5, 0.0], [(1, 0.25)])
    # mean 0.3125, sample std 0.239357
    assert _advantages(group, OURS) == _near(-0.261007, 0.783022, 0.783022, -1.305037)
    released = _rows(group, RELEASED)  # seed 0 draws slot 3
    assert [row.response_token_ids[0] for row in released.rows] == [100, 110, 120, 110]
    assert not any(row.off_policy for row in released.rows)
    # 0.25, 0.5, 0.5, 0.5: mean 0.4375, sample std 0.125
    assert _advantages(group, RELEASED) == _near(-1.498801, 0.499600, 0.499600, 0.499600)


def test_a_revision_equal_to_the_best() -> None:
    """Replaces a row | must be better, unless `accept: not_worse`."""
    group = make_group([0.25, 0.5, 0.0], [(1, 0.5)])
    assert _rows(group, OURS).stats.accepted == 0
    ties = HindsightConfig(accept="not_worse")
    assert _rows(group, ties).stats.accepted == 1
    # 0.25, 0.5, 0.5: mean 0.416667, sample std 0.144338
    assert _advantages(group, ties) == _near(-1.153901, 0.576951, 0.576951)


def test_tokens_from_the_engine_end_to_end() -> None:
    """Decoded, stripped, re-encoded, end token guessed | ids as sampled."""
    space, letter, end = 32, 104, 1  # " h" and an id that is no character of the text

    class Padded(FakeEngine):
        def complete(self, request: GenerateRequest) -> Completion:
            completion = super().complete(request)
            ids = np.concatenate([[space, letter], completion.token_ids, [space, end]])
            log_probs = np.linspace(-1, 0, len(ids))
            return type(completion)(
                request.request_id, ids.astype(np.int32), log_probs.astype(np.float32), "stop", 1
            )

    groups = _stream(Padded(), OURS, prompts=6)
    step = build_train_batch(
        groups, OURS, ALGORITHM, prompts_per_optimizer_step=6, run_seed=11, step=0
    )
    assert any(row.off_policy for row in step.batch.rows)
    for row in step.batch.rows:
        ids = row.response_token_ids
        assert ids[:2].tolist() == [space, letter] and ids[-2:].tolist() == [space, end]
        assert (
            row.rollout_log_probs.tobytes() == np.linspace(-1, 0, len(ids)).astype("f4").tobytes()
        )


def test_log_probs_belong_to_the_row() -> None:
    """Replaced rows keep the old row's engine log-probs | rows are built whole."""
    for hindsight in (OURS, RELEASED, HindsightConfig(replace="append")):
        for row in _rows(_worked(), hindsight).rows:
            expected = -row.response_token_ids.astype(np.float32) / 1000  # as the helper makes them
            assert row.rollout_log_probs.tobytes() == expected.tobytes()


def test_bonus_of_a_worse_revision() -> None:
    """0.80 -> 0.76 | clipped at 0 unless `clip_negative: false`."""
    group = make_group([0.8, 0.4], [(0, 0.0)])
    assert [row.reward for row in _rows(group, OURS).rows] == _near(0.8, 0.4)
    unclipped = HindsightConfig(clip_negative=False)
    assert [row.reward for row in _rows(group, unclipped).rows] == _near(0.76, 0.4)
    # mean 0.58, sample std 0.254558: 0.18 / 0.254658
    assert _advantages(group, unclipped) == _near(0.706829, -0.706829)
    assert RELEASED.clip_negative  # not part of reference_compat: set it by its name


def test_a_failed_judgement_is_no_reward() -> None:
    """Reward 0 | masked, counted, and out of mean, best, bonus, slots and batch."""
    group = make_group([0.5, None, 1.0, 0.0])
    # Over 0.5, 1.0, 0.0: mean 0.5, sample std 0.5. With a 0 for the failure it would be 0.375.
    assert _advantages(group, OURS) == _near(0.0, 0.0, 0.999800, -0.999800)
    row = _rows(group, OURS).rows[1]
    assert row.reward is None and row.weight == 0.0
    step = build_train_batch(
        [group], OURS, ALGORITHM, prompts_per_optimizer_step=1, run_seed=0, step=0
    )
    assert [r.response_token_ids[0] for r in step.batch.rows] == [100, 120, 130]
    assert step.metrics["scoring/unscored"] == 1.0
    assert step.metrics["reward/mean"] == pytest.approx(0.5)
    failed = make_group([0.5, 0.25], [(0, None)])
    assert bonus_rewards(failed, HindsightConfig(clip_negative=False)) == (0.0, 0.0)
    assert group_advantages([0.5, None], [True, True], ALGORITHM).outcome == "too_few"


def test_negative_criteria_are_shown_as_something_to_avoid() -> None:
    """Weigh 0 yet listed as things to fix, as if to be done | "avoid"."""
    bad = Criterion("b", "judge", description="Recommends a dose.", weight=3, polarity="negative")
    prompt = Prompt("p", (Message("user", "Ask."),), Rubric((bad,)))
    content = revision_messages(prompt, "d", [], [bad], "rubric")[-1].content
    assert "to fix:\n- avoid: Recommends a dose. (weight 3)\n" in content


def test_one_reward_selects_and_trains() -> None:
    """Selects by `dense`, trains on `score` | the same number everywhere, plus the bonus."""
    group = make_group([0.3, 0.7, 0.1])
    (best,) = select_experiences(group.scores, OURS, 0)
    rows = _rows(group, OURS).rows
    assert [row.reward for row in rows] == [0.3, 0.7, 0.1]
    assert rows[best].reward == max(row.reward for row in rows if row.reward is not None)


def test_one_stream_gives_what_barriers_give() -> None:
    """Two generation and two scoring phases with global barriers | one stream, same numbers."""

    def advantages(streamed: bool, delay: int) -> list[tuple[float, bytes]]:
        rollout = ROLLOUT.model_copy(update={"streamed": streamed})
        groups = _stream(FakeEngine(delay), OURS, prompts=8, rollout=rollout)
        step = build_train_batch(
            groups, OURS, ALGORITHM, prompts_per_optimizer_step=4, run_seed=11, step=0
        )
        return [(row.advantage, row.rollout_log_probs.tobytes()) for row in step.batch.rows]

    expected = advantages(True, 1)
    assert len(expected) > 8
    assert advantages(False, 2) == expected == advantages(True, 3)
