"""Which revisions join a group, and in whose place."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.bonus import bonus_rewards
from herl_megatron.hindsight.join import join_revisions
from herl_megatron.types import RowOrigin, ScoredGroup
from tests.unit.hindsight.groups import make_group


def _join(group: ScoredGroup, seed: int = 0, **options: Any) -> tuple[RowOrigin, ...]:
    config = HindsightConfig(**options)
    return join_revisions(group, bonus_rewards(group, config), config, seed)


def _own(*indices: int) -> list[RowOrigin]:
    return [RowOrigin(index) for index in indices]


def test_the_best_revision_takes_the_worst_place() -> None:
    group = make_group([0.25, 0.5, 0.0, 0.5], [(1, 0.75), (3, 1.0)])
    rows = _join(group)
    assert rows == (*_own(0, 1), RowOrigin(3, revision_index=1, replaces=2), *_own(3))


def test_the_worst_is_among_rows_without_a_bonus() -> None:
    # The draft of the revision is the worst row, but it earned 0.05 * 0.8.
    group = make_group([0.2, 0.2, 0.2], [(0, 1.0)])
    assert _join(group)[1] == RowOrigin(0, revision_index=0, replaces=1)
    # Without a bonus (alpha 0) the first of the equal rows gives way.
    assert _join(group, alpha=0.0)[0] == RowOrigin(0, revision_index=0, replaces=0)


def test_a_row_with_a_bonus_stays_even_if_it_is_the_lowest() -> None:
    # `select: all_failed` revises the worst row too: 0.1 + 0.05 * 0.9 = 0.145 < 0.3 < 0.4.
    group = make_group([0.4, 0.1, 0.3], [(1, 1.0)])
    assert _join(group)[2] == RowOrigin(1, revision_index=0, replaces=2)


def test_if_all_earned_a_bonus_the_lowest_reward_gives_way() -> None:
    # With bonus: 0.2 + 0.05 * 0.8 = 0.24; 0.2 + 0.05 * 0.7 = 0.235.
    group = make_group([0.2, 0.2], [(0, 1.0), (1, 0.9)])
    assert _join(group) == (RowOrigin(0), RowOrigin(0, revision_index=0, replaces=1))


def test_a_penalised_row_earned_no_bonus() -> None:
    # 0.5 - 0.05 * 0.5 = 0.475 < 0.5: the penalty makes row 0 the worst.
    group = make_group([0.5, 0.5, 0.5], [(0, 0.0), (1, 1.0)])
    assert _join(group, clip_negative=False)[0] == RowOrigin(1, revision_index=1, replaces=0)


def test_accept_better_and_not_worse() -> None:
    equal = make_group([0.5, 0.25], [(0, 0.5)])
    assert _join(equal) == (*_own(0, 1),)
    assert _join(equal, accept="not_worse")[1] == RowOrigin(0, revision_index=0, replaces=1)
    worse = make_group([0.5, 0.25], [(0, 0.49)])
    assert _join(worse, accept="not_worse") == (*_own(0, 1),)


def test_equal_within_a_millionth_is_not_better() -> None:
    assert _join(make_group([0.5, 0.25], [(0, 0.5 + 9e-7)])) == (*_own(0, 1),)
    assert _join(make_group([0.5, 0.25], [(0, 0.5 + 2e-6)]))[1].revision_index == 0
    near = make_group([0.5, 0.25], [(0, 0.5 - 9e-7)])
    assert _join(near, accept="not_worse")[1].revision_index == 0


def test_acceptance_compares_with_rewards_without_bonus() -> None:
    # With its bonus the best row has 0.5 + 0.9 * 0.5 = 0.95, above the second revision's 0.75.
    group = make_group([0.5, 0.25, 0.0], [(0, 1.0), (0, 0.75)])
    rows = _join(group, alpha=0.9, replace_top_n=2)
    assert rows == (
        RowOrigin(0),
        RowOrigin(0, revision_index=1, replaces=1),
        RowOrigin(0, revision_index=0, replaces=2),
    )


def test_replace_top_n_limits_how_many_join() -> None:
    group = make_group([0.0, 0.1, 0.2, 0.3], [(3, 0.6), (3, 0.8), (3, 0.7)])
    rows = _join(group, replace_top_n=2)
    assert rows[0] == RowOrigin(3, revision_index=1, replaces=0)  # best revision, worst place
    assert rows[1] == RowOrigin(3, revision_index=2, replaces=1)
    assert rows[2:] == (*_own(2, 3),)
    assert sum(row.revision_index is not None for row in _join(group)) == 1


def test_among_equal_revisions_the_earlier_joins() -> None:
    group = make_group([0.0, 0.1], [(1, 0.5), (1, 0.5)])
    assert _join(group)[0].revision_index == 0


def test_append_lets_the_group_grow() -> None:
    group = make_group([0.0, 0.5], [(1, 0.75), (1, 1.0)])
    assert _join(group, replace="append") == (*_own(0, 1), RowOrigin(1, revision_index=1))
    both = _join(group, replace="append", replace_top_n=2)
    assert both[2:] == (RowOrigin(1, revision_index=1), RowOrigin(1, revision_index=0))


def _cut(group: ScoredGroup, number: int) -> ScoredGroup:
    """The group with a revision that ended at the length limit."""
    found = group.revisions[number]
    completion = replace(found.rollout.completion, finish_reason="length")
    one = replace(found, rollout=replace(found.rollout, completion=completion))
    return replace(
        group, revisions=(*group.revisions[:number], one, *group.revisions[number + 1 :])
    )


def test_accept_all_joins_every_scored_revision() -> None:
    """Better, equal and worse than the group's best 0.5, and than their own drafts."""
    group = make_group([0.5, 0.25, 0.0], [(0, 0.5), (1, 0.0), (2, None), (0, 0.75), (1, 0.25)])
    union: dict[str, Any] = {"accept": "all", "replace": "append", "replace_top_n": None}
    assert _join(group, **union) == (
        *_own(0, 1, 2),
        RowOrigin(0, revision_index=3),
        RowOrigin(0, revision_index=0),
        RowOrigin(1, revision_index=4),
        RowOrigin(1, revision_index=1),
    )
    # One that was cut is of the union where `join_cut` says so.
    cut = _cut(group, 3)
    assert [row.revision_index for row in _join(cut, **union)[3:]] == [0, 4, 1]
    assert [row.revision_index for row in _join(cut, **union, join_cut=True)[3:]] == [3, 0, 4, 1]
    # In the places of others: the worst reward first, rows with a bonus (row 0) last.
    assert [row.revision_index for row in _join(group, **union | {"replace": "worst"})] == [4, 0, 3]


def test_accept_all_has_no_group_without_a_qualified_revision_but_an_unscored_one() -> None:
    group = make_group([0.5, 0.25], [(0, 0.0)])
    rows = _join(group, accept="all", no_qualified="copy_best", replace_top_n=None)
    assert [row.revision_index for row in rows] == [None, 0]
    unscored = make_group([0.5, 0.25], [(0, None)])
    assert _join(unscored, accept="all") == (*_own(0, 1),)


def test_no_limit_to_how_many_join() -> None:
    group = make_group([0.0, 0.1, 0.2, 0.3], [(3, 0.6), (3, 0.8), (3, 0.7)])
    rows = _join(group, replace="append", replace_top_n=None)
    assert [row.revision_index for row in rows[4:]] == [1, 2, 0]


def test_random_places_are_even_and_seeded() -> None:
    group = make_group([0.5, 0.25, None, 0.0, 0.25], [(0, 1.0)])
    drawn = [_join(group, seed, replace="random") for seed in range(400)]
    assert drawn == [_join(group, seed, replace="random") for seed in range(400)]
    slots = Counter(row.replaces for rows in drawn for row in rows if row.replaces is not None)
    # Four scored rows, 100 expected each, standard deviation 8.7; the best row (0) is one of them.
    assert set(slots) == {0, 1, 3, 4} and all(65 <= n <= 135 for n in slots.values())


def test_random_places_are_distinct() -> None:
    group = make_group([0.0, 0.1, 0.2], [(2, 0.6), (2, 0.8), (2, 0.7)])
    rows = _join(group, replace="random", replace_top_n=3)
    assert {row.revision_index for row in rows} == {0, 1, 2} and len(rows) == 3


def test_more_accepted_revisions_than_rows_leaves_the_lesser_out() -> None:
    group = make_group([0.0, None], [(0, 0.6), (0, 0.8)])
    rows = _join(group, replace_top_n=2)
    assert rows == (RowOrigin(0, revision_index=1, replaces=0), RowOrigin(1))


def test_an_unscored_row_is_not_the_worst_and_an_unscored_revision_never_joins() -> None:
    group = make_group([0.5, None, 0.25], [(0, None), (0, 0.75)])
    assert _join(group)[2] == RowOrigin(0, revision_index=1, replaces=2)
    only_unscored = make_group([0.5, 0.25], [(0, None)])
    assert _join(only_unscored, accept="not_worse") == (*_own(0, 1),)


def test_a_revision_that_was_cut_joins_only_where_it_may() -> None:
    """It would teach never to end."""
    group = _cut(make_group([0.5, 0.25], [(0, 0.75), (0, 1.0)]), 1)
    assert _join(group)[1] == RowOrigin(0, revision_index=0, replaces=1)
    assert _join(group, join_cut=True)[1] == RowOrigin(0, revision_index=1, replaces=1)
    alone = replace(group, revisions=group.revisions[1:])
    assert _join(alone) == (*_own(0, 1),)


def test_without_a_qualified_revision_the_group_is_kept() -> None:
    assert _join(make_group([0.5, 0.25], [(0, 0.25)])) == (*_own(0, 1),)


def test_copy_best_overwrites_a_random_row() -> None:
    group = make_group([0.25, 0.5, None, 0.5], [(1, 0.25)])
    slots: Counter[int] = Counter()
    for seed in range(300):
        rows = _join(group, seed, no_qualified="copy_best")
        (copy,) = [row for row in rows if row.replaces is not None]
        assert copy == RowOrigin(1, replaces=copy.replaces)
        assert copy.replaces is not None and rows[copy.replaces] == copy
        slots[copy.replaces] += 1
    assert set(slots) == {0, 1, 3} and all(65 <= n <= 135 for n in slots.values())


def test_copy_best_needs_hindsight_to_have_run() -> None:
    assert _join(make_group([0.25, 0.5]), no_qualified="copy_best") == (*_own(0, 1),)
    accepted = make_group([0.25, 0.5], [(1, 1.0)])
    assert _join(accepted, no_qualified="copy_best")[0].revision_index == 0
