"""Sums of optimizer steps become a step's metrics."""

from __future__ import annotations

import pytest

from herl_megatron.algos.loss_metrics import combine


def test_means_are_divided_once_over_all_tokens() -> None:
    """3 of 10 and 0 of 0 revision tokens' ratios: 0.6 on average, not (0.6 + 0) / 2."""
    steps = [
        {"loss": 1.0, "revision_ratio_mean": 6.0, "revision_tokens": 10.0,
         "padding_ratio": 30.0, "row_tokens": 20.0},
        {"loss": 3.0, "revision_ratio_mean": 0.0, "revision_tokens": 0.0,
         "padding_ratio": 90.0, "row_tokens": 80.0},
    ]  # fmt: skip
    assert combine(steps) == pytest.approx(
        {"loss": 2.0, "revision_ratio_mean": 0.6, "revision_tokens": 5.0,
         "padding_ratio": 1.2, "row_tokens": 50.0}
    )  # fmt: skip


def test_nothing_to_divide_by_leaves_the_mean_out() -> None:
    steps = [
        {"ratio_mean": 0.0, "mismatch_max": 0.0, "sampled_tokens": 0.0,
         "revision_ratio_mean": 2.0, "revision_tokens": 4.0}
    ]  # fmt: skip
    assert combine(steps) == {
        "sampled_tokens": 0.0, "revision_ratio_mean": 0.5, "revision_tokens": 4.0,
    }  # fmt: skip
    assert combine([]) == {}


def test_largest_over_the_optimizer_steps() -> None:
    steps = [{"mismatch_max": high, "sampled_tokens": n} for high, n in ((4.0, 3.0), (0.0, 0.0))]
    assert combine(steps)["mismatch_max"] == 4.0
