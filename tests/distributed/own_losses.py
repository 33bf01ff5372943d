"""Losses as a user writes them, for ranks of the tests (`algorithm.loss`)."""

from __future__ import annotations

import torch

from herl_megatron.algos.loss_inputs import LossInputs


def clip(inputs: LossInputs) -> torch.Tensor:
    """The built-in one at its defaults, written anew."""
    ratio = (inputs.log_probs - inputs.old_log_probs).clamp(-20, 20).exp()
    advantages = inputs.advantages
    loss = torch.maximum(-ratio * advantages, -ratio.clamp(0.8, 1.2) * advantages)
    ceiling = -3.0 * advantages
    return torch.where((advantages < 0) & (loss > ceiling), ceiling, loss)


def sequence_ratio(inputs: LossInputs, *, clip: float) -> torch.Tensor:
    """One ratio for a whole response (GSPO, arXiv 2507.18071, eq. 5 and 7)."""
    ratio = inputs.row_mean(inputs.log_probs - inputs.old_log_probs).exp()
    advantages = inputs.advantages
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
