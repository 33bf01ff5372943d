"""What a loss is given: the response tokens of one micro-batch, and sums over their rows.

A loss is a pure function of `LossInputs`, whoever wrote it (docs/extending_algorithms.md). Under
context parallelism a row's tokens lie on several ranks; `row_sum` and `row_mean` hide that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Which rows the tokens at hand are of.

    number: `[tokens]` int64, of each token the number of its row in this micro-batch, in order.
    tokens: `[rows]` int64, how many response tokens each row has, on all ranks together.
    group: the context-parallel ranks that hold parts of these rows; None where one has them whole.
    """

    number: torch.Tensor
    tokens: torch.Tensor
    group: dist.ProcessGroup | None = None

    def select(self, mask: torch.Tensor) -> TokenRows:
        """Of the tokens where `mask`, `[tokens]` bool, is true: true for whole rows only."""
        return TokenRows(self.number[mask], self.tokens, self.group)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` over each token's row, `[tokens]` -> `[tokens]`; see `row_sum`."""
        first = torch.arange(len(self.tokens) + 1, device=self.number.device)
        borders = torch.searchsorted(self.number, first)  # rows stand in order
        apply: Any = _RowSum.apply
        total: torch.Tensor = apply(values, self.number, borders, self.group)
        return total


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Response tokens of one micro-batch; every tensor is `[tokens]`, float32 unless said.

    log_probs: of the current policy, with gradient.
    entropy: of the current policy, with gradient.
    old_log_probs: the trainer's at the step's first weights, in the training context.
    rollout_log_probs: of the behaviour policy, as the engine drew the tokens.
    ref_log_probs: of the reference model; None when `kl_coef` is 0.
    advantages: the row's advantage on each of its tokens.
    off_policy: bool, true on tokens of revisions and replays.
    weights: from `reductions.token_weights`; 0 on dummy rows. The loss is the sum of `weights`
        times what a loss function returns, so that itself uses them for nothing.
    rows: the row of each token.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    old_log_probs: torch.Tensor
    rollout_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor | None
    advantages: torch.Tensor
    off_policy: torch.Tensor
    weights: torch.Tensor
    rows: TokenRows

    def row_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` over the response that each token is part of, `[tokens]` -> `[tokens]`.

        The same whatever else is in the micro-batch and wherever the response is cut, with its
        gradient. Summed in float64. Collective under context parallelism: a loss calls it as often
        on every rank, so not under a condition on what a tensor holds.
        """
        return self.rows.sum(values)

    def row_mean(self, values: torch.Tensor) -> torch.Tensor:
        """`row_sum` over the number of tokens of the response, `[tokens]` -> `[tokens]`."""
        return self.row_sum(values) / self.rows.tokens[self.rows.number]

    def select(self, mask: torch.Tensor) -> LossInputs:
        """The tokens where `mask`, `[tokens]` bool, is true, of whole rows. Selected before
        anything is computed, so that a value which has no meaning for the other tokens can reach
        neither the loss nor its gradient."""
        ref_log_probs = self.ref_log_probs
        return LossInputs(
            log_probs=self.log_probs[mask],
            entropy=self.entropy[mask],
            old_log_probs=self.old_log_probs[mask],
            rollout_log_probs=self.rollout_log_probs[mask],
            ref_log_probs=None if ref_log_probs is None else ref_log_probs[mask],
            advantages=self.advantages[mask],
            off_policy=self.off_policy[mask],
            weights=self.weights[mask],
            rows=self.rows.select(mask),
        )


class _RowSum(torch.autograd.Function):
    """y_t = sum of x_s over all s of t's row. The matrix of 0 and 1 is symmetric: what goes back is
    the same sum of the gradients, over the same ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        number: torch.Tensor,
        borders: torch.Tensor,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(number, borders)
        ctx.group = group
        return _spread_sums(values, number, borders, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        number, borders = ctx.saved_tensors
        return _spread_sums(gradient, number, borders, ctx.group), None, None, None


def _spread_sums(
    values: torch.Tensor,
    number: torch.Tensor,
    borders: torch.Tensor,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """Row by row, so that no row's rounding depends on the others."""
    sums = torch.segment_reduce(values.double(), "sum", offsets=borders, unsafe=True)
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums[number].to(values.dtype)
