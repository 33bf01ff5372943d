"""Self-improvement's numbers, worked out by hand."""

from __future__ import annotations

import pytest

from herl_megatron.improvement.trajectory import (
    Attempt,
    Trajectory,
    accepted,
    at_least_tokens,
    best_attempt,
    best_of_n,
    is_done,
    outcome,
    round_results,
)
from tests.unit.hindsight.groups import make_score


def attempt(
    reward: float | None,
    *,
    round: int = 0,
    parent: int | None = None,
    tokens: int = 10,
    prompt_tokens: int = 5,
) -> Attempt:
    """Reward 1 meets both criteria; anything else misses one."""
    met = ("short", "polite") if reward == 1.0 else ("short",)
    score = make_score(reward, met, () if reward == 1.0 else ("polite",))
    return Attempt(round, parent, "text", tokens, prompt_tokens, "stop", score)


def test_the_best_is_the_earliest_of_the_highest_and_never_an_unscored_one() -> None:
    drawn = [attempt(None), attempt(0.4), attempt(0.4 + 1e-9), attempt(0.7), attempt(None)]
    assert [best_attempt(drawn[:n]) for n in range(6)] == [None, None, 1, 1, 3, 3]
    assert [accepted(drawn, n) for n in range(5)] == [False, True, False, True, False]
    negative = [attempt(None), attempt(-2.0), attempt(-1.5)]  # a scale below 0 (healthbench)
    assert [best_attempt(negative[:n]) for n in range(4)] == [None, None, 1, 2]


def test_done_is_when_the_best_misses_nothing() -> None:
    assert not is_done([attempt(None)])
    assert not is_done([attempt(0.9)])
    assert is_done([attempt(0.9), attempt(1.0)])


def test_outcome_averages_the_scored_and_counts_everything() -> None:
    drawn = [
        [attempt(0.25), attempt(0.5, tokens=7)],
        [attempt(None, tokens=3)],
        [attempt(1.0, prompt_tokens=9)],
    ]
    result = outcome(drawn)
    assert result.reward == pytest.approx(0.75)  # of 0.5 and 1.0, not over three
    assert result.all_satisfied == pytest.approx(0.5)
    assert (result.answered, result.samples) == (2, 4)
    assert result.tokens == 10 + 7 + 3 + 10
    assert result.prompt_tokens == 5 + 5 + 5 + 9
    nothing = outcome([[attempt(None)]])
    assert (nothing.reward, nothing.all_satisfied, nothing.answered) == (None, None, 0)


def test_best_of_n_stops_where_nothing_is_left_to_improve() -> None:
    samples = [
        [attempt(0.2), attempt(1.0), attempt(0.6), attempt(0.6)],
        [attempt(0.4), attempt(0.1), attempt(0.8), attempt(0.9)],
    ]
    of_three = best_of_n(samples, 3).outcome
    assert of_three.reward == pytest.approx((1.0 + 0.8) / 2)
    assert of_three.samples == 2 + 3
    assert best_of_n(samples, 1).outcome.reward == pytest.approx(0.3)
    # N = 1, 2, 3, 4 sample 20, 40, 50, 60 tokens.
    assert [at_least_tokens(samples, t).n for t in (1, 20, 21, 41, 60, 61)] == [1, 1, 2, 3, 4, 4]


def test_rounds_and_the_baseline_at_equal_cost() -> None:
    """Three trajectories of two rounds: a fix in round 1; a useless and a good revision; a draft
    without a score, then a fresh sample, then an unscored revision."""
    trajectories = [
        Trajectory("a", 0, (attempt(0.5), attempt(1.0, round=1, parent=0, tokens=20))),
        Trajectory(
            "b",
            0,
            (
                attempt(0.4),
                attempt(0.2, round=1, parent=0, tokens=20),
                attempt(0.6, round=2, parent=0, tokens=20),
            ),
        ),
        Trajectory(
            "c",
            0,
            (
                attempt(None),
                attempt(0.1, round=1),
                attempt(None, round=2, parent=1, tokens=20),
            ),
        ),
    ]
    samples = [
        [attempt(0.5), attempt(0.6), attempt(0.7), attempt(0.7)],
        [attempt(0.4), attempt(1.0)],
        [attempt(None), attempt(0.1), attempt(0.3), attempt(0.3)],
    ]
    first, second, third = round_results(trajectories, samples, rounds=2)
    assert first.outcome.reward == pytest.approx(0.45)  # of a and b
    assert second.outcome.reward == pytest.approx((1.0 + 0.4 + 0.1) / 3)
    assert third.outcome.reward == pytest.approx((1.0 + 0.6 + 0.1) / 3)
    assert third.outcome.all_satisfied == pytest.approx(1 / 3)
    assert [r.outcome.tokens for r in (first, second, third)] == [30, 80, 120]
    assert [r.revisions for r in (first, second, third)] == [0, 2, 2]
    assert [r.redrawn for r in (first, second, third)] == [0, 1, 0]
    assert [r.accepted for r in (first, second, third)] == [0, 2, 1]  # a fresh one counts, too
    assert [r.unscored for r in (first, second, third)] == [1, 0, 1]
    equal = [r.same_samples for r in (first, second, third)]
    assert [best and best.n for best in equal] == [1, 2, 3]
    assert equal[2] and equal[2].outcome.reward == pytest.approx((0.7 + 1.0 + 0.3) / 3)
    # N samples 30, 60, 80, 100 tokens; the trajectories 30, 80, 120: the last is out of reach.
    tokens = [r.same_tokens for r in (first, second, third)]
    assert [best and best.n for best in tokens] == [1, 3, 4]
    assert round_results(trajectories, None, rounds=2)[1].same_samples is None
