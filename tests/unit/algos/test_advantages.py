"""Group-relative advantages by hand."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.algos.advantages import GroupAdvantages, group_advantages
from herl_megatron.config.schema import AlgorithmConfig

BASE = AlgorithmConfig()
OURS = [True] * 4


def _approx(*values: float) -> Any:
    return pytest.approx(values, abs=5e-7)


def test_sample_standard_deviation() -> None:
    # mean 0.5, squares 0.25 + 0 + 0 + 0.25 over n - 1 = 3: std 0.408248; 0.5 / 0.408348
    result = group_advantages([0.0, 0.5, 0.5, 1.0], OURS, BASE)
    assert result.advantages == _approx(-1.224445, 0.0, 0.0, 1.224445)
    assert result.weights == (1.0, 1.0, 1.0, 1.0)
    assert result.outcome == "trained"


def test_advantage_eps_is_read() -> None:
    config = AlgorithmConfig(advantage_eps=0.1)  # 0.5 / 0.508248
    result = group_advantages([0.0, 0.5, 0.5, 1.0], OURS, config)
    assert result.advantages == _approx(-0.983771, 0.0, 0.0, 0.983771)


def test_without_normalize_std_only_the_mean_goes() -> None:
    config = AlgorithmConfig(normalize_std=False)
    result = group_advantages([0.0, 0.5, 0.5, 0.8], OURS, config)
    assert result.advantages == _approx(-0.45, 0.05, 0.05, 0.35)


def test_rows_without_reward_are_masked_from_loss_and_mean() -> None:
    # Over 1.0, 0.0 and 0.5: mean 0.5, std 0.5.
    result = group_advantages([1.0, 0.0, None, 0.5], OURS, BASE)
    assert result.advantages == _approx(0.999800, -0.999800, 0.0, 0.0)
    assert result.weights == (1.0, 1.0, 0.0, 1.0)


def test_baseline_with_and_without_revisions() -> None:
    rewards = [0.25, 0.525, 0.5125, 1.0]
    own = [True, True, True, False]
    # mean 0.571875, std 0.312312
    both = group_advantages(rewards, own, BASE)
    assert both.advantages == _approx(-1.030289, -0.150042, -0.190053, 1.370384)
    # over the first three: mean 0.429167, std 0.155289
    config = AlgorithmConfig(baseline="on_policy")
    alone = group_advantages(rewards, own, config)
    assert alone.advantages == _approx(-1.153022, 0.616733, 0.536289, 3.673583)
    assert alone.weights == (1.0, 1.0, 1.0, 1.0)


def test_alpha_hardly_matters_in_a_tied_group() -> None:
    # One bonus d in a tied group of 8: (7/8) d / (d / sqrt(8) + 1e-4); 2.474874 without eps.
    small = group_advantages([0.5] * 7 + [0.525], [True] * 8, BASE)
    large = group_advantages([0.5] * 7 + [0.75], [True] * 8, BASE)
    assert small.advantages == _approx(*[-0.349598] * 7, 2.447187)
    assert large.advantages == _approx(*[-0.353154] * 7, 2.472077)


@pytest.mark.parametrize("rewards", [[0.5] * 4, [1.0, None, 1.0, 1.0], [0.3, 0.3, 0.3 + 5e-7, 0.3]])
def test_no_spread_gives_no_gradient(rewards: list[float | None]) -> None:
    expected = GroupAdvantages((0.0,) * 4, (0.0,) * 4, "zero_spread")
    assert group_advantages(rewards, OURS, BASE) == expected
    assert group_advantages(rewards, OURS, AlgorithmConfig(normalize_std=False)) == expected


def test_kept_groups_without_spread_have_weights_and_no_advantage() -> None:
    kept = AlgorithmConfig(zero_spread="keep")
    expected = GroupAdvantages((0.0,) * 4, (1.0, 0.0, 1.0, 1.0), "zero_spread")
    assert group_advantages([1.0, None, 1.0, 1.0], OURS, kept) == expected
    # Compared with an on-policy baseline of std 0, the revision's 0.5 more has no advantage either.
    config = AlgorithmConfig(zero_spread="keep", baseline="on_policy")
    tied = group_advantages([0.5, 0.5, 1.0], [True, True, False], config)
    assert tied == GroupAdvantages((0.0,) * 3, (1.0,) * 3, "zero_spread")
    # One reward is no group without spread: what could not be scored is no zero.
    few = GroupAdvantages((0.0,) * 4, (0.0,) * 4, "too_few")
    assert group_advantages([None, 1.0, None, None], OURS, kept) == few


def test_min_valid_counts_rows_with_a_reward() -> None:
    few = GroupAdvantages((0.0,) * 4, (0.0,) * 4, "too_few")
    assert group_advantages([None, 1.0, None, None], OURS, BASE) == few
    assert group_advantages([None] * 4, OURS, BASE) == few
    assert group_advantages([None, 1.0, 0.0, None], OURS, BASE).outcome == "trained"
    three = AlgorithmConfig(min_valid=3)
    assert group_advantages([None, 1.0, 0.0, None], OURS, three) == few
    assert group_advantages([0.5, 1.0, 0.0, None], OURS, three).outcome == "trained"


def test_an_on_policy_baseline_needs_its_own_rows_and_spread() -> None:
    config = AlgorithmConfig(baseline="on_policy")
    assert group_advantages([0.0, 1.0], [True, False], config).outcome == "too_few"
    # Dividing by a standard deviation of 0 would give the revision 1 / eps = 10000.
    tied = [True, True, False]
    assert group_advantages([0.0, 0.0, 1.0], tied, config).outcome == "zero_spread"
    config = AlgorithmConfig(baseline="on_policy", normalize_std=False)
    assert group_advantages([0.0, 0.0, 1.0], tied, config).advantages == _approx(0.0, 0.0, 1.0)
