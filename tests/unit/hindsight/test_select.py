"""Which rollouts become experience."""

from __future__ import annotations

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.select import select_experiences
from herl_megatron.types import Score, Scored
from tests.unit.hindsight.groups import make_score

BASE = HindsightConfig()


def _scores(*rewards: float | None) -> list[Score]:
    return [make_score(reward) for reward in rewards]


def test_a_group_that_reaches_the_threshold_needs_none() -> None:
    assert select_experiences(_scores(0.5, 1.0, 0.25), BASE, 0) == ()
    assert select_experiences(_scores(0.5, 0.75, 0.25), BASE, 0) == (1,)


def test_threshold_is_read() -> None:
    config = HindsightConfig(threshold=0.75)
    assert select_experiences(_scores(0.5, 0.75, 0.25), config, 0) == ()
    assert select_experiences(_scores(0.5, 0.7, 0.25), config, 0) == (1,)


def test_best_failed_takes_ties_within_a_millionth() -> None:
    scores = _scores(0.5, 0.25, 0.5 - 9e-7, 0.5 - 2e-6)
    assert select_experiences(scores, BASE, 0) == (0, 2)


def test_among_ties_more_satisfied_criteria_first_then_index() -> None:
    scores = [
        make_score(0.5, ("a",), ("b", "c")),
        make_score(0.5, ("a", "b"), ("c",)),
        make_score(0.5, ("c",), ("a", "b")),
        make_score(0.5, ("a", "c"), ("b",)),
    ]
    assert select_experiences(scores, BASE, 0) == (1, 3, 0, 2)
    assert select_experiences(scores, HindsightConfig(max_experiences=2), 0) == (1, 3)


def test_all_failed_orders_by_reward_then_satisfied_then_index() -> None:
    scores = [
        make_score(0.25),
        make_score(0.5),
        make_score(0.25, ("a", "b"), ("c",)),
        make_score(0.75),
        make_score(None),
    ]
    config = HindsightConfig(select="all_failed")
    assert select_experiences(scores, config, 0) == (3, 1, 2, 0)
    config = HindsightConfig(select="all_failed", max_experiences=3)
    assert select_experiences(scores, config, 0) == (3, 1, 2)


def test_random_draws_by_seed_among_all_failed() -> None:
    scores = _scores(0.0, 0.25, None, 0.5, 0.75, 0.125)
    config = HindsightConfig(select="random", max_experiences=2)
    drawn = {seed: select_experiences(scores, config, seed) for seed in range(200)}
    assert drawn == {seed: select_experiences(scores, config, seed) for seed in range(200)}
    assert all(len(set(indices)) == 2 for indices in drawn.values())
    counts = {i: sum(i in indices for indices in drawn.values()) for i in range(6)}
    assert counts[2] == 0  # unscored
    # Each of the five is drawn with probability 2/5: 80 of 200, standard deviation 6.9.
    assert all(50 <= counts[i] <= 110 for i in (0, 1, 3, 4, 5))


def test_unscored_rollouts_are_neither_best_nor_chosen() -> None:
    assert select_experiences(_scores(None, 0.0, None), BASE, 0) == (1,)
    assert select_experiences(_scores(None, None), BASE, 0) == ()


def test_a_response_that_misses_nothing_is_no_experience() -> None:
    clean = Scored(0.5, (), ("short", "polite"), ())
    for select in ("best_failed", "all_failed", "random"):
        config = HindsightConfig(select=select)
        assert select_experiences([clean, make_score(0.5)], config, 0) == (1,)
        assert select_experiences([clean, clean], config, 0) == ()
