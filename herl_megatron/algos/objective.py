"""What the policy is trained by."""

from __future__ import annotations

from dataclasses import dataclass

from herl_megatron.algos.own_loss import TokenLoss
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig


@dataclass(frozen=True)
class PolicyObjective:
    """The loss's settings, and the temperature that the policy samples at (`rollout.temperature`):
    logits are divided by it, so training needs it above 0.

    own_loss: what `algorithm.loss` names, where that is a user's (`own_loss.open_loss`).
    """

    algorithm: AlgorithmConfig
    hindsight: HindsightConfig
    temperature: float = 1.0
    own_loss: TokenLoss | None = None
