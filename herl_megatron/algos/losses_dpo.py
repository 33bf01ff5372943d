"""Direct preference optimisation: losses over pairs, and their gradient by sequence.

For a pair (chosen y_w, rejected y_l) of one prompt x, sums over the response's tokens:

    h = [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x) - log ref(y_l|x)]
    sigmoid:  -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)
    ipo:      (h - 1 / (2 beta))^2

`sigmoid` is DPO's loss (arXiv 2305.18290, eq. 7) for e = 0; e = `label_smoothing` is the chance
that a label is wrong (cDPO, E. Mitchell's note of 2023). `ipo` is from arXiv 2310.12036, eq. 17.

**Two passes.** A pair's loss needs both sequences, which lie in any micro-batches of any ranks. But
it depends on the policy through h alone, so with its slope s = dloss/dh known, the gradient is

    dloss/dtheta = s * (dlog pi(y_w|x)/dtheta - dlog pi(y_l|x)/dtheta):

the first pass computes log-probs without gradient, h and s follow here, and the second pass is a
step on sums of token log-probs, each times its row's coefficient (`coefficient_loss`). That is the
exact gradient, for one more forward pass, and rows may be spread, packed and cut as in any step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from herl_megatron.algos.losses import LossOutput
from herl_megatron.algos.reductions import weighted_sum

PairLossName = Literal["sigmoid", "ipo"]


@dataclass(frozen=True, eq=False)
class PairLogProbs:
    """Log-probs of whole responses, `[pairs]` float64 each: of the policy and of the reference."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor


@dataclass(frozen=True, eq=False)
class PairLoss:
    """`[pairs]` float64 each. slopes: dloss/dh. Rewards are beta * (log pi - log ref)."""

    losses: torch.Tensor
    slopes: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor

    def metrics(self) -> dict[str, float]:
        """Means over the pairs; `accuracy` counts pairs whose chosen response has more reward."""
        margins = self.chosen_rewards - self.rejected_rewards
        return {
            "loss": self.losses.mean().item(),
            "accuracy": (margins > 0).double().mean().item(),
            "margin": margins.mean().item(),
            "chosen_reward": self.chosen_rewards.mean().item(),
            "rejected_reward": self.rejected_rewards.mean().item(),
        }


def pair_loss(
    pairs: PairLogProbs, *, name: PairLossName, beta: float, label_smoothing: float
) -> PairLoss:
    """The loss of each pair and its slope; the module docstring has the equations."""
    chosen_rewards = beta * (pairs.chosen - pairs.ref_chosen)
    rejected_rewards = beta * (pairs.rejected - pairs.ref_rejected)
    margins = chosen_rewards - rejected_rewards
    if name == "ipo":
        distance = margins / beta - 1 / (2 * beta)
        losses, slopes = distance**2, 2 * distance
    else:
        e = label_smoothing
        losses = -(1 - e) * logsigmoid(margins) - e * logsigmoid(-margins)
        slopes = beta * (e * torch.sigmoid(margins) - (1 - e) * torch.sigmoid(-margins))
    return PairLoss(losses, slopes, chosen_rewards, rejected_rewards)


def coefficient_loss(log_probs: torch.Tensor, coefficients: torch.Tensor) -> LossOutput:
    """-sum of `coefficients * log_probs`, both `[tokens]`: the second pass. A row's coefficient
    holds the slope and the denominator; the value itself means nothing, only its gradient."""
    loss = -weighted_sum(log_probs, coefficients)
    return LossOutput(loss, {"loss": loss.detach().clone()}, {})
