"""Aggregations by hand, and that a split of the batch changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from herl_megatron.algos.reductions import LossAggregation, token_weights, weighted_sum
from herl_megatron.batching.shards import block_mean_tokens

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


# Rows of 3, 1, 2, 2 and 4 tokens; in blocks of two their means are 16 / 4, 12 / 4 and 4 / 4.
ROWS = ([1.0, 2.0, 3.0], [10.0], [4.0, 6.0], [0.0, 2.0], [1.0, 1.0, 1.0, 1.0])


def blocks_one_by_one(rows: Sequence[Sequence[float]], block_rows: int) -> float:
    """As a trainer that takes the mean of each micro-batch: a padded matrix and its mask."""
    total = 0.0
    for start in range(0, len(rows), block_rows):
        block = rows[start : start + block_rows]
        longest = max(map(len, block))
        matrix = torch.tensor([[*row, *[99.0] * (longest - len(row))] for row in block])
        mask = torch.tensor([[column < len(row) for column in range(longest)] for row in block])
        mean = torch.where(mask, matrix, 0.0).sum() / mask.sum()
        total += float(mean) * len(block) / len(rows)
    return total


def blocks_by_weight(
    rows: Sequence[Sequence[float]], block_rows: int, parts: Sequence[Sequence[int]]
) -> float:
    """Sum of weight times value, where the rows are computed in these parts."""
    means = block_mean_tokens([len(row) for row in rows], block_rows)
    total = 0.0
    for part in parts:
        per_row = token_weights(
            "block_token_mean",
            row_tokens=torch.tensor([len(rows[i]) for i in part]),
            loss_tokens=sum(map(len, rows)),
            loss_rows=len(rows),
            block_means=torch.tensor([means[i] for i in part]),
        )
        for i, weight in zip(part, per_row, strict=True):
            total += weighted_sum(torch.tensor(rows[i]), weight.expand(len(rows[i]))).item()
    return total


def test_blocks_by_hand() -> None:
    assert block_mean_tokens([3, 1, 2, 2, 4], 2) == [2.0, 2.0, 2.0, 2.0, 4.0]
    # (2 * 4 + 2 * 3 + 1 * 1) / 5; the mean over all tokens is 32 / 12.
    assert blocks_by_weight(ROWS, 2, [range(5)]) == pytest.approx(3.0)
    assert blocks_one_by_one(ROWS, 2) == pytest.approx(3.0)


@pytest.mark.parametrize("block_rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[4, 1], [3, 0], [2]]], ids=str)
def test_blocks_are_the_same_however_rows_are_spread(
    block_rows: int, parts: list[list[int]]
) -> None:
    found = blocks_by_weight(ROWS, block_rows, parts)
    assert found == pytest.approx(blocks_one_by_one(ROWS, block_rows), rel=1e-6)


def test_the_ends_of_block_token_mean_are_other_aggregations() -> None:
    row_means = [2.0, 10.0, 5.0, 1.0, 1.0]
    assert blocks_by_weight(ROWS, 1, [range(5)]) == pytest.approx(sum(row_means) / 5)
    assert blocks_by_weight(ROWS, 5, [range(5)]) == pytest.approx(32 / 12)


def test_sum_is_float32() -> None:
    ones = torch.ones(1000, dtype=torch.bfloat16)
    assert weighted_sum(ones, torch.full((1000,), 1e-3)).item() == pytest.approx(1.0, abs=1e-5)
