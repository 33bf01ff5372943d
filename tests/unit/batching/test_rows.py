"""From scored groups to train rows, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from herl_megatron.batching.rows import StepRows, build_rows, build_train_batch
from herl_megatron.config.reference_compat import effective
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig, RolloutConfig
from herl_megatron.seeds import join_seed
from herl_megatron.types import Prompt, RowOrigin, Scored, ScoredGroup, TrainRow
from tests.unit.hindsight.groups import PROMPT, make_group

HERL = HindsightConfig()
ALGORITHM = AlgorithmConfig()


def _worked() -> ScoredGroup:
    """Bonuses 0.025 and 0.0125 for rows 1 and 2; revision 0 takes row 3's place."""
    return make_group([0.25, 0.5, 0.5, 0.0], [(1, 1.0), (2, 0.75)], too_long=1)


def _tokens(row: TrainRow) -> list[int]:
    return [int(token) for token in row.response_token_ids]


def test_worked_group() -> None:
    built = build_rows(_worked(), HERL, ALGORITHM, 0)
    rewards = [row.reward for row in built.rows]
    assert rewards == pytest.approx([0.25, 0.525, 0.5125, 1.0], abs=1e-9)
    # mean 0.571875, sample std 0.312312443716, eps 1e-4
    assert [row.advantage for row in built.rows] == pytest.approx(
        [-1.030289, -0.150042, -0.190053, 1.370384], abs=5e-7
    )
    assert [_tokens(row) for row in built.rows] == [[100, 101], [110, 111], [120, 121], [500, 501]]
    assert [row.off_policy for row in built.rows] == [False, False, False, True]
    assert [row.weight for row in built.rows] == [1.0] * 4
    assert built.origins[3] == RowOrigin(1, revision_index=0, replaces=3)
    assert {row.prompt_id for row in built.rows} == {"p0"}


def test_a_revision_row_is_whole() -> None:
    group = _worked()
    row = build_rows(group, HERL, ALGORITHM, 0).rows[3]
    revision = group.revisions[0].rollout.completion
    assert _tokens(row) == revision.token_ids.tolist()
    assert row.rollout_log_probs.tobytes() == revision.log_probs.tobytes()
    assert row.context_token_ids.tolist() == [1, 2, 3]


def test_train_context_experience_is_the_revision_rows_context_alone() -> None:
    config = HindsightConfig(train_context="experience")
    rows = build_rows(_worked(), config, ALGORITHM, 0).rows
    assert [row.context_token_ids.tolist() for row in rows] == [[1, 2, 3]] * 3 + [[1, 2, 3, 91]]


def test_alpha_zero_is_the_ablation_without_bonus() -> None:
    rows = build_rows(_worked(), HindsightConfig(alpha=0.0), ALGORITHM, 0).rows
    assert [row.reward for row in rows] == [0.25, 0.5, 0.5, 1.0]


def test_append_grows_the_group() -> None:
    rows = build_rows(_worked(), HindsightConfig(replace="append"), ALGORITHM, 0).rows
    assert [row.reward for row in rows] == pytest.approx([0.25, 0.525, 0.5125, 0.0, 1.0])
    # mean 0.4575, sample std 0.372239842037
    assert [row.advantage for row in rows] == pytest.approx(
        [-0.557287, 0.181286, 0.147715, -1.228716, 1.457002], abs=5e-7
    )


def test_baseline_on_policy_leaves_the_revision_out() -> None:
    rows = build_rows(_worked(), HERL, AlgorithmConfig(baseline="on_policy"), 0).rows
    assert [row.advantage for row in rows] == pytest.approx(
        [-1.153022, 0.616733, 0.536289, 3.673583], abs=5e-7
    )


def test_a_copy_of_the_best_is_an_on_policy_row() -> None:
    group = make_group([0.25, 0.5, 0.5, 0.0], [(1, 0.5)])
    config = HindsightConfig(no_qualified="copy_best")
    built = build_rows(group, config, ALGORITHM, 0)  # Random(0).choice of four is 3
    assert built.origins[3] == RowOrigin(1, replaces=3)
    assert _tokens(built.rows[3]) == [110, 111] and not built.rows[3].off_policy
    # 0.25, 0.5, 0.5, 0.5: mean 0.4375, sample std 0.125
    assert [row.advantage for row in built.rows] == pytest.approx(
        [-1.498801, 0.499600, 0.499600, 0.499600], abs=5e-7
    )
    assert (built.stats.copied, built.stats.accepted) == (1, 0)


def test_an_unscored_row_has_no_number() -> None:
    rows = build_rows(make_group([1.0, None, 0.0]), HERL, ALGORITHM, 0).rows
    assert rows[1].reward is None
    assert (rows[1].weight, rows[1].advantage) == (0.0, 0.0)
    # mean 0.5, sample std 0.707107
    assert [rows[0].advantage, rows[2].advantage] == pytest.approx([0.707007, -0.707007], abs=5e-7)


def test_reference_compat() -> None:
    released = HindsightConfig(reference_compat=True)
    with pytest.raises(AssertionError, match="resolved by prepare"):
        build_rows(_worked(), released, ALGORITHM, 1)
    built = build_rows(_worked(), effective(released, RolloutConfig()), ALGORITHM, 1)
    # Random(1).sample over four begins with 1: the row that had earned the bonus is lost.
    assert built.origins[1] == RowOrigin(1, revision_index=0, replaces=1)
    assert built.rows[1].context_token_ids.tolist() == [1, 2, 3, 91]
    # 0.25, 1.0, 0.5125, 0.0: mean 0.440625
    assert [row.advantage for row in built.rows] == pytest.approx(
        [-0.445686, 1.307833, 0.168046, -1.030192], abs=5e-7
    )


def test_the_input_group_is_not_edited() -> None:
    group = _worked()
    tokens = [r.completion.token_ids.tolist() for r in group.group.rollouts]
    scores = group.scores
    build_rows(group, HERL, ALGORITHM, 0)
    assert [r.completion.token_ids.tolist() for r in group.group.rollouts] == tokens
    assert group.scores == scores == _worked().scores


def test_group_statistics() -> None:
    stats = build_rows(_worked(), HERL, ALGORITHM, 0).stats
    assert (stats.rollouts, stats.unscored, stats.all_satisfied) == (4, 0, 0)
    assert stats.reward_sum == pytest.approx(1.25)  # the rollouts', without bonus or revision
    assert (stats.experiences, stats.revisions, stats.accepted) == (2, 2, 1)
    assert (stats.experiences_too_long, stats.revisions_unscored, stats.copied) == (1, 0, 0)
    assert stats.gain_sum == pytest.approx(0.5 + 0.25)
    assert stats.bonus_sum == pytest.approx(0.0375)
    assert (stats.response_tokens, stats.truncated, stats.outcome) == (8, 0, "trained")


def _batch(
    groups: Sequence[ScoredGroup],
    per_step: int = 2,
    hindsight: HindsightConfig = HERL,
    run_seed: int = 0,
) -> StepRows:
    return build_train_batch(
        groups, hindsight, ALGORITHM, prompts_per_optimizer_step=per_step, run_seed=run_seed, step=3
    )


def test_batch_splits_groups_in_order_and_drops_rows_without_weight() -> None:
    tied = make_group([0.5, 0.5])
    groups = [_worked(), tied, make_group([1.0, None, 0.0]), make_group([0.0, 1.0]), _worked()]
    step = _batch(groups)
    assert [len(rows) for rows in step.batch.optimizer_steps] == [4, 4, 4]
    assert all(row.weight == 1.0 and row.reward is not None for row in step.batch.rows)
    # The token mean's denominator: 12 rows of 2 tokens; none of the masked rows' tokens.
    assert step.metrics["train/tokens"] == 24.0
    assert step.metrics["train/rows"] == 12.0
    assert [len(group.rows) for group in step.groups] == [4, 2, 3, 2, 4]
    assert [_tokens(row) for row in step.batch.optimizer_steps[1]] == [
        [100, 101],
        [120, 121],
        [100, 101],
        [110, 111],
    ]


def test_an_optimizer_step_without_rows_is_left_out_and_counted() -> None:
    tied = make_group([0.5, 0.5])
    step = _batch([tied, tied, _worked(), tied])
    assert [len(rows) for rows in step.batch.optimizer_steps] == [4]
    assert step.metrics["train/optimizer_steps_empty"] == 1.0
    assert step.metrics["train/groups_zero_spread"] == 3.0
    assert _batch([tied]).batch.optimizer_steps == ()


def test_kept_groups_without_spread_are_rows_without_advantage() -> None:
    """In their place between the others; no optimizer step is empty for them."""
    tied, kept = make_group([0.5, None, 0.5]), AlgorithmConfig(zero_spread="keep")
    groups = [make_group([0.0, 1.0]), tied, tied, tied]
    step = build_train_batch(groups, HERL, kept, prompts_per_optimizer_step=2, run_seed=0, step=3)
    assert [[row.advantage for row in rows] for rows in step.batch.optimizer_steps] == [
        [pytest.approx(-0.707007, abs=1e-6), pytest.approx(0.707007, abs=1e-6), 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    assert step.metrics["train/optimizer_steps_empty"] == 0.0
    assert step.metrics["train/groups_zero_spread"] == 3.0
    assert (step.metrics["train/rows"], step.metrics["train/tokens"]) == (8.0, 16.0)


def test_metrics_report_the_policys_own_rollouts() -> None:
    perfect = make_group([1.0, 0.5, None])
    metrics = _batch([_worked(), perfect, make_group([None, None])]).metrics
    # (1.25 + 1.5) over 4 + 2 scored rollouts; neither bonus nor the revision's 1.0.
    assert metrics["reward/mean"] == pytest.approx(2.75 / 6)
    assert metrics["scoring/unscored"] == 3.0
    assert metrics["hindsight/revisions"] == 2.0
    assert metrics["hindsight/accepted"] == 1.0
    assert metrics["hindsight/gain"] == pytest.approx(0.375)
    assert metrics["hindsight/bonus_sum"] == pytest.approx(0.0375)
    assert metrics["hindsight/experiences_too_long"] == 1.0
    assert metrics["train/groups_too_few"] == 1.0
    assert metrics["rollout/response_tokens"] == 2.0


def test_all_satisfied_counts_rollouts_that_miss_nothing() -> None:
    group = make_group([1.0, 0.0, 0.0])
    clean = Scored(1.0, (), ("short", "polite"), ())
    empty = Scored(0.0, (), (), ())  # no verdict either way, as under one overall judgement
    group = ScoredGroup(group.group, (clean, group.scores[1], empty))
    assert _batch([group]).metrics["reward/all_satisfied"] == pytest.approx(1 / 3)


def test_a_mean_over_nothing_is_left_out() -> None:
    metrics = _batch([make_group([None, None])]).metrics
    assert "reward/mean" not in metrics and "hindsight/gain" not in metrics


def test_random_places_depend_on_run_step_and_prompt_only() -> None:
    other = Prompt("p1", PROMPT.messages, PROMPT.rubric)
    config = HindsightConfig(replace="random")
    group = make_group([0.25, 0.5, 0.5, 0.0], [(1, 1.0)])
    twin = make_group([0.25, 0.5, 0.5, 0.0], [(1, 1.0)], prompt=other)
    forwards = _batch([group, twin], hindsight=config).groups
    backwards = _batch([twin, group], hindsight=config).groups
    assert [g.origins for g in forwards] == [g.origins for g in reversed(backwards)]
    seed = join_seed(0, step=3, prompt_id="p0")
    assert forwards[0].origins == build_rows(group, config, ALGORITHM, seed).origins
    drawn = {_batch([group], hindsight=config, run_seed=s).groups[0].origins for s in range(30)}
    assert len(drawn) == 4
