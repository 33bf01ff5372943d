"""Tokens that losses are tried on."""

from __future__ import annotations

import torch

from herl_megatron.algos.loss_inputs import LossInputs, TokenRows


def make_inputs(rows: TokenRows | None = None) -> LossInputs:
    """Two on-policy tokens of ratios 1.5 and 1, two of revisions with ratios 2 and 1/4."""
    return LossInputs(
        log_probs=torch.log(torch.tensor([0.3, 0.4, 0.6, 0.1])).requires_grad_(),
        entropy=torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True),
        old_log_probs=torch.log(torch.tensor([0.2, 0.4, 0.5, 0.2])),
        rollout_log_probs=torch.log(torch.tensor([0.9, 0.9, 0.3, 0.4])),
        ref_log_probs=torch.log(torch.tensor([0.6, 0.4, 0.6, 0.05])),
        advantages=torch.tensor([2.0, -1.0, 1.0, 3.0]),
        off_policy=torch.tensor([False, False, True, True]),
        weights=torch.full((4,), 0.25),
        rows=rows or TokenRows(torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2])),
    )
