"""The only normalisers of the loss: how per-token values become one number.

Values are flat: one entry per response token of the micro-batch, prompt and padding not among
them. An aggregation gives every token a weight, so that the loss of the global batch is the plain
sum of `weight * value` over all tokens, micro-batches and ranks. Nothing is averaged locally, hence
no result depends on how rows are spread over ranks and micro-batches.

| aggregation     | weight of a token in a row of n tokens | value over the global batch       |
|-----------------|----------------------------------------|-----------------------------------|
| `token_mean`    | 1 / tokens                             | mean over all tokens              |
| `sequence_mean` | 1 / (rows * n)                         | mean over rows of their token mean|
| `sequence_sum`  | 1 / rows                               | mean over rows of their token sum |
"""

from __future__ import annotations

from typing import Literal

import torch

LossAggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]


def token_weights(
    aggregation: LossAggregation,
    *,
    row_tokens: torch.Tensor,
    loss_tokens: int,
    loss_rows: int,
) -> torch.Tensor:
    """Weight of each token of a row, `[rows]` float32; see the table above.

    Args:
        aggregation: name of the rule.
        row_tokens: `[rows]`, response tokens of each row.
        loss_tokens: response tokens of the global batch.
        loss_rows: rows of the global batch.
    """
    ones = torch.ones_like(row_tokens, dtype=torch.float32)
    if aggregation == "token_mean":
        return ones / loss_tokens
    if aggregation == "sequence_mean":
        return ones / (loss_rows * row_tokens)
    assert aggregation == "sequence_sum", f"unknown aggregation {aggregation!r}"
    return ones / loss_rows


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of `weights * values`, both `[tokens]`, in float32."""
    return (values.float() * weights).sum()
