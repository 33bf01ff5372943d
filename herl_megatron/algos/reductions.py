"""The only normalisers of the loss: how per-token values become one number.

Values are flat: one entry per response token of the micro-batch, prompt and padding not among
them. An aggregation gives every token a weight, so that the loss of the global batch is the plain
sum of `weight * value` over all tokens, micro-batches and ranks. Nothing is averaged locally, hence
no result depends on how rows are spread over ranks and micro-batches.

| aggregation        | weight of a token in a row of n tokens | value over the global batch        |
|--------------------|----------------------------------------|------------------------------------|
| `token_mean`       | 1 / tokens                             | mean over all tokens               |
| `sequence_mean`    | 1 / (rows * n)                         | mean over rows of their token mean |
| `sequence_sum`     | 1 / rows                               | mean over rows of their token sum  |
| `block_token_mean` | 1 / (rows * m)                         | mean over blocks of their token    |
|                    |                                        | mean, each weighted by its rows    |

m is the mean of n over the rows of the row's block: the token means S_b / T_b of the blocks b, with
T_b tokens and r_b of the R rows, weigh r_b / R, and r_b / (R T_b) = 1 / (R m_b). With one row to a
block `block_token_mean` is `sequence_mean`, with all rows in one it is `token_mean`.
"""

from __future__ import annotations

from typing import Literal

import torch

LossAggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "block_token_mean"]


def token_weights(
    aggregation: LossAggregation,
    *,
    row_tokens: torch.Tensor,
    loss_tokens: int,
    loss_rows: int,
    block_means: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weight of each token of a row, `[rows]` float32; see the table above.

    Args:
        aggregation: name of the rule.
        row_tokens: `[rows]`, response tokens of each row.
        loss_tokens: response tokens of the global batch.
        loss_rows: rows of the global batch.
        block_means: `[rows]` float32, the m of each row; for `block_token_mean`.
    """
    ones = torch.ones_like(row_tokens, dtype=torch.float32)
    if aggregation == "token_mean":
        return ones / loss_tokens
    if aggregation == "sequence_mean":
        return ones / (loss_rows * row_tokens)
    if aggregation == "block_token_mean":
        assert block_means is not None, "block_token_mean without the blocks' means"
        return ones / (loss_rows * block_means)
    assert aggregation == "sequence_sum", f"unknown aggregation {aggregation!r}"
    return ones / loss_rows


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of `weights * values`, both `[tokens]`, in float32."""
    return (values.float() * weights).sum()
