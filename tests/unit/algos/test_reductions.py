"""Aggregations by hand, and that a split of the batch changes nothing."""

from __future__ import annotations

import pytest
import torch

from herl_megatron.algos.reductions import LossAggregation, token_weights, weighted_sum

# Two rows: tokens 1, 2, 3 and token 10.
VALUES = torch.tensor([1.0, 2.0, 3.0, 10.0])
ROW_TOKENS = torch.tensor([3, 1])
EXPECTED = {
    "token_mean": 16 / 4,
    "sequence_mean": (2 + 10) / 2,
    "sequence_sum": (6 + 10) / 2,
}


@pytest.mark.parametrize("aggregation", list(EXPECTED))
def test_by_hand(aggregation: LossAggregation) -> None:
    per_row = token_weights(aggregation, row_tokens=ROW_TOKENS, loss_tokens=4, loss_rows=2)
    weights = per_row.repeat_interleave(ROW_TOKENS)
    assert weighted_sum(VALUES, weights).item() == pytest.approx(EXPECTED[aggregation])


@pytest.mark.parametrize("aggregation", list(EXPECTED))
def test_micro_batches_add_up(aggregation: LossAggregation) -> None:
    total = 0.0
    for row_tokens, values in (([3], VALUES[:3]), ([1], VALUES[3:])):
        counts = torch.tensor(row_tokens)
        per_row = token_weights(aggregation, row_tokens=counts, loss_tokens=4, loss_rows=2)
        total += weighted_sum(values, per_row.repeat_interleave(counts)).item()
    assert total == pytest.approx(EXPECTED[aggregation])


def test_sum_is_float32() -> None:
    ones = torch.ones(1000, dtype=torch.bfloat16)
    assert weighted_sum(ones, torch.full((1000,), 1e-3)).item() == pytest.approx(1.0, abs=1e-5)
