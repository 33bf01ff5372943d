"""Rates of a step, worked out by hand."""

from __future__ import annotations

import pytest

from herl_megatron.observability.throughput import Throughput

VALUES = {
    "rollout/tokens": 900.0, "rollout/revision_tokens": 100.0, "time/generation_s": 4.0,
    "time/train_s": 2.0, "time/total_s": 10.0,
}  # fmt: skip


def flops(row_tokens: float) -> float:
    """1e9 per token, and 1e6 more for each token of the row."""
    return 1e9 + 1e6 * row_tokens


def test_rates_of_a_step() -> None:
    """20 rows of 100 tokens on 2 ranks; 1000 tokens from 4 engines. Learning is 3 passes and one
    more gives log-probs: 4 * 2000 * 1.1e9 = 8.8e12 operations in 2 s on 2 devices."""
    found = Throughput(2, 4, flops, 1, 11e12).metrics(VALUES, rows=20, row_tokens=2000)
    assert found == pytest.approx(
        {
            "perf/tokens_per_s": 100.0,
            "perf/rollout_tokens_per_s": 250.0,
            "perf/rollout_tokens_per_s_per_device": 62.5,
            "perf/train_tokens_per_s": 1000.0,
            "perf/train_tokens_per_s_per_device": 500.0,
            "perf/train_tflops_per_s_per_device": 2.2,
            "perf/mfu": 0.2,
        }
    )


def test_no_mfu_without_a_peak_and_no_rate_of_what_took_no_time() -> None:
    found = Throughput(1, 1, flops, 0, None).metrics(
        {"time/total_s": 10.0, "time/train_s": 0.0}, rows=0, row_tokens=0
    )
    assert found == {}
    found = Throughput(1, 1, flops, 0, None).metrics(VALUES, rows=1, row_tokens=100)
    assert "perf/mfu" not in found and found["perf/train_tokens_per_s"] == 50.0
