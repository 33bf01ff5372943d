"""The losses of HeRL, one pure function per formula, all on flat response tokens `[tokens]`.

Sum over the global batch (docs/algorithm.md, "Loss"; HeRL, arXiv 2603.20046):

    loss = policy + hindsight + kl_coef * KL(pi || ref) - entropy_coef * H(pi)

Every term is summed with the same token weights (`algos.reductions`), so the reported parts add up
to the loss.

Engine and trainer give the same token different probabilities under the same weights. How far they
are apart is reported over on-policy tokens, with r = exp(old_log_probs - rollout_log_probs):
`mismatch_mean` and `mismatch_max` of r, `mismatch_truncated` (share of r above `mismatch_cap`) and
`mismatch_kl` = KL(engine || trainer); `algorithm.mismatch_weight` corrects for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from herl_megatron.algos.loss_inputs import LossInputs
from herl_megatron.algos.own_loss import TokenLoss
from herl_megatron.algos.reductions import weighted_sum
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig

Behavior = Literal["sampler", "old", "one"]

MAX_LOG_RATIO = 20.0
"""Exponents of importance ratios and of the KL estimate are clamped to [-20, 20] so that exp cannot
overflow. Ratios out there are far beyond both clips, where the PPO terms have no gradient."""


@dataclass(frozen=True, eq=False)
class LossOutput:
    """The loss (scalar with gradient) and detached numbers to add up over micro-batches and ranks.

    parts: `loss`, the terms `loss_*` that it is the sum of, and the means `entropy` and `kl` behind
        two of them; their denominators are in the weights already.
    sums: plain sums and the counts (`*_tokens`) to divide them by once everything is added up.
    maxima: numbers of which the largest counts, 0 without tokens.
    """

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]
    sums: dict[str, torch.Tensor]
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)


def importance_ratio(log_probs: torch.Tensor, old_log_probs: torch.Tensor) -> torch.Tensor:
    """exp(log_probs - old_log_probs), its exponent clamped by `MAX_LOG_RATIO`."""
    return (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def ppo_clip_loss(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate with dual clip: (loss, clipped), both `[tokens]`, `clipped` bool.

    A >= 0: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)        (PPO, arXiv 1707.06347, eq. 7)
    A < 0:  -max(min(r A, clip(r, ...) A), dual_clip A)        (dual clip, arXiv 1912.09729, eq. 5)

    `clipped` marks tokens whose ratio no longer has a gradient.
    """
    plain = -ratio * advantages
    bounded = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(plain, bounded)
    ceiling = -dual_clip * advantages
    too_large = (advantages < 0) & (loss > ceiling)
    return torch.where(too_large, ceiling, loss), (bounded > plain) | too_large


def hindsight_loss(
    log_probs: torch.Tensor,
    behavior_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    gamma: float,
) -> torch.Tensor:
    """-A f(rho), f(rho) = rho / (rho + gamma), rho = pi / mu: `[tokens]` (HeRL's off-policy term).

    f(rho) equals sigmoid(log rho - log gamma), which is how it is computed: exact for any ratio,
    so nothing is clamped.
    """
    return -advantages * torch.sigmoid(log_probs - behavior_log_probs - math.log(gamma))


def k3_kl(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """The k3 estimate of KL(pi || ref) per token: exp(d) - d - 1 with d = log ref - log pi.

    From J. Schulman's note "Approximating KL Divergence" (2020). exp's argument is clamped by
    `MAX_LOG_RATIO`.
    """
    difference = ref_log_probs - log_probs
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() - difference - 1


def mismatch_weight(
    old_log_probs: torch.Tensor, rollout_log_probs: torch.Tensor, *, cap: float
) -> torch.Tensor:
    """min(exp(old_log_probs - rollout_log_probs), cap), `[tokens]`, without gradient.

    Truncated importance weight between the policy that drew the token (the engine's) and the one
    that the ratio starts from (the trainer's), as in IMPALA's truncated weights (arXiv 1802.01561,
    eq. 1). For on-policy tokens only: a revision's mu is already the denominator of its own rho
    (`hindsight.behavior`), and it was drawn in another context, so this ratio means nothing there.
    """
    return importance_ratio(old_log_probs, rollout_log_probs).clamp(max=cap).detach()


def behavior_log_probs(inputs: LossInputs, behavior: Behavior) -> torch.Tensor:
    """log mu as `hindsight.behavior` names it, `[tokens]`."""
    if behavior == "sampler":
        return inputs.rollout_log_probs
    if behavior == "old":
        return inputs.old_log_probs
    return torch.zeros_like(inputs.log_probs)


def policy_loss(
    inputs: LossInputs,
    *,
    algorithm: AlgorithmConfig,
    hindsight: HindsightConfig,
    own: TokenLoss | None = None,
) -> LossOutput:
    """The whole loss of one micro-batch (module docstring) and its metrics.

    own: takes the place of PPO's clip on on-policy tokens; with `hindsight.off_policy_loss: own` it
        is called once on all tokens, and its part on off-policy ones is the term `hindsight`.
    """
    sampled = inputs.select(~inputs.off_policy)
    revised = inputs.select(inputs.off_policy)
    behavior = behavior_log_probs(revised, hindsight.behavior)
    clipped = None
    if own is not None and hindsight.off_policy_loss == "own":
        values = own(inputs)
        on_policy, off_policy = values[~inputs.off_policy], values[inputs.off_policy]
    else:
        on_policy, clipped = _on_policy_loss(sampled, algorithm, own)
        off_policy = _off_policy_loss(revised, behavior, algorithm=algorithm, hindsight=hindsight)
    if algorithm.mismatch_weight:
        on_policy = on_policy * mismatch_weight(
            sampled.old_log_probs, sampled.rollout_log_probs, cap=algorithm.mismatch_cap
        )
    terms = {
        "loss_policy": weighted_sum(on_policy, sampled.weights),
        "loss_hindsight": weighted_sum(off_policy, revised.weights),
    }
    means = {"entropy": weighted_sum(inputs.entropy, inputs.weights)}
    if algorithm.entropy_coef:
        terms["loss_entropy"] = -algorithm.entropy_coef * means["entropy"]
    if algorithm.kl_coef:
        assert inputs.ref_log_probs is not None, "kl_coef is not 0 but there are no ref_log_probs"
        means["kl"] = weighted_sum(k3_kl(inputs.log_probs, inputs.ref_log_probs), inputs.weights)
        terms["loss_kl"] = algorithm.kl_coef * means["kl"]
    loss = torch.stack(list(terms.values())).sum()
    # A copy: Megatron's schedules may divide the loss in place after it was handed over.
    parts = {name: x.detach().clone() for name, x in {"loss": loss, **terms, **means}.items()}
    mismatch_sums, maxima = _mismatch(sampled, cap=algorithm.mismatch_cap)
    sums = {
        **_on_policy_sums(sampled, clipped),
        **mismatch_sums,
        **_revision_sums(revised, behavior),
    }
    return LossOutput(loss, parts, sums, maxima)


def _on_policy_loss(
    sampled: LossInputs, algorithm: AlgorithmConfig, own: TokenLoss | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`algorithm.loss` of rollouts' tokens, and which of them are clipped where that is known."""
    if own is not None:
        return own(sampled), None
    return _clip_loss(sampled, sampled.old_log_probs, algorithm)


def _off_policy_loss(
    revised: LossInputs,
    behavior: torch.Tensor,
    *,
    algorithm: AlgorithmConfig,
    hindsight: HindsightConfig,
) -> torch.Tensor:
    """`hindsight.off_policy_loss` of revisions' and replays' tokens, `[tokens]`.

    `clip` is PPO's loss with rho = pi / mu: HiR's (arXiv 2512.23457), where mu is the policy that
    sampled the response, in the prompt that it was sampled from.
    """
    if hindsight.off_policy_loss == "shaped":
        return hindsight_loss(
            revised.log_probs, behavior, revised.advantages, gamma=hindsight.gamma
        )
    return _clip_loss(revised, behavior, algorithm)[0]


def _clip_loss(
    inputs: LossInputs, start_log_probs: torch.Tensor, algorithm: AlgorithmConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ppo_clip_loss` with ratios to the policy of `start_log_probs`, `[tokens]`."""
    return ppo_clip_loss(
        importance_ratio(inputs.log_probs, start_log_probs),
        inputs.advantages,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
    )


@torch.no_grad()
def _on_policy_sums(sampled: LossInputs, clipped: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """clipped: which tokens' ratios are clipped; None where the loss is not ours to tell."""
    real = (sampled.weights > 0).float()
    ratio = importance_ratio(sampled.log_probs, sampled.old_log_probs)
    log_ratio = sampled.log_probs - sampled.old_log_probs
    known = {} if clipped is None else {"clip_fraction": weighted_sum(clipped, real)}
    return known | {
        # k3 with samples of the old policy: KL(old || new) = E_old[r - 1 - log r]
        "kl_old_new": weighted_sum(ratio - 1 - log_ratio, real),
        "ratio_mean": weighted_sum(ratio, real),
        "sampled_tokens": real.sum(),
    }


@torch.no_grad()
def _mismatch(
    sampled: LossInputs, *, cap: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sums and maxima of the module docstring's `mismatch_*`."""
    real = (sampled.weights > 0).float()
    log_ratio = sampled.old_log_probs - sampled.rollout_log_probs
    ratio = importance_ratio(sampled.old_log_probs, sampled.rollout_log_probs)
    sums = {
        "mismatch_mean": weighted_sum(ratio, real),
        "mismatch_truncated": weighted_sum(ratio > cap, real),
        # k3 with samples of the engine: E_engine[r - 1 - log r]
        "mismatch_kl": weighted_sum(ratio - 1 - log_ratio, real),
    }
    return sums, {"mismatch_max": torch.cat([ratio * real, ratio.new_zeros(1)]).amax()}


@torch.no_grad()
def _revision_sums(revised: LossInputs, behavior: torch.Tensor) -> dict[str, torch.Tensor]:
    real = (revised.weights > 0).float()
    ratio = importance_ratio(revised.log_probs, behavior)
    return {"revision_ratio_mean": weighted_sum(ratio, real), "revision_tokens": real.sum()}


def sft_loss(log_probs: torch.Tensor, weights: torch.Tensor) -> LossOutput:
    """Negative log-likelihood, -sum of `weights * log_probs`, both `[tokens]`."""
    loss = -weighted_sum(log_probs, weights)
    tokens = (weights > 0).float().sum()
    return LossOutput(loss, {"loss": loss.detach().clone()}, {"sampled_tokens": tokens})
