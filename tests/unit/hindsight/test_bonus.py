"""Bonus reward: alpha * (max_j rt_ij - r_i)."""

from __future__ import annotations

import pytest

from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.bonus import bonus_rewards
from tests.unit.hindsight.groups import make_group


def test_only_experiences_earn_a_bonus_from_their_best_revision() -> None:
    group = make_group([0.5, 0.25, 0.5], [(0, 0.75), (0, 1.0), (2, 0.6)])
    # 0.05 * (1.0 - 0.5), nothing, 0.05 * (0.6 - 0.5)
    assert bonus_rewards(group, HindsightConfig()) == pytest.approx((0.025, 0.0, 0.005), abs=1e-12)


def test_alpha_is_read_and_zero_gives_none() -> None:
    group = make_group([0.5, 0.25], [(0, 1.0)])
    assert bonus_rewards(group, HindsightConfig(alpha=0.4)) == pytest.approx((0.2, 0.0))
    assert bonus_rewards(group, HindsightConfig(alpha=0.0)) == (0.0, 0.0)


def test_a_worse_revision_takes_nothing_away_unless_asked() -> None:
    group = make_group([0.8, 0.25], [(0, 0.0)])
    assert bonus_rewards(group, HindsightConfig()) == (0.0, 0.0)
    # The released code: 0.80 becomes 0.76.
    unclipped = bonus_rewards(group, HindsightConfig(clip_negative=False))
    assert unclipped == pytest.approx((-0.04, 0.0), abs=1e-12)


def test_the_best_revision_counts_when_all_are_worse() -> None:
    group = make_group([0.8], [(0, 0.0), (0, 0.4)])
    unclipped = bonus_rewards(group, HindsightConfig(clip_negative=False))
    assert unclipped == pytest.approx((-0.02,), abs=1e-12)


def test_an_unscored_revision_is_no_evidence() -> None:
    group = make_group([0.5, 0.5], [(0, None), (1, None), (1, 0.7)])
    config = HindsightConfig(clip_negative=False)
    assert bonus_rewards(group, config) == pytest.approx((0.0, 0.01), abs=1e-12)
