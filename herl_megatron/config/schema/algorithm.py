"""Sections `algorithm` and `optimizer`: loss, advantages and updates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from herl_megatron.config.hooks import OptionValue
from herl_megatron.config.schema.base import MOST_AT_ONCE, MOST_STEPS, Numbers, Section


class AlgorithmConfig(Section):
    """Advantages and the loss."""

    advantage: Numbers[str] = "group_relative"
    """`group_relative`: a reward less its group's mean, over the standard deviation. Or a function
    of your own, as `module:function` (docs/extending_algorithms.md)."""
    advantage_options: Numbers[dict[str, OptionValue]] = {}
    """What an advantage of your own is given by keyword."""
    baseline: Numbers[Literal["with_revisions", "on_policy"]] = "with_revisions"
    """Rows that give the group's mean and standard deviation."""
    normalize_std: Numbers[bool] = True
    """Divide by the group's standard deviation."""
    advantage_eps: Numbers[float] = Field(default=1e-4, gt=0)
    """Added to the standard deviation."""
    min_valid: Numbers[int] = Field(default=2, gt=1, le=MOST_AT_ONCE)
    """A group with fewer scored rows than this gives no gradient and is counted."""
    zero_spread: Numbers[Literal["drop", "keep"]] = "drop"
    """Groups whose rewards are all equal, so that no row has an advantage. `drop`: their rows are
    not computed and count nowhere in the loss. `keep` (released code): they count in its
    denominators and in the KL and entropy terms."""
    loss: Numbers[str] = "clip"
    """Of rollouts' tokens. `clip`: PPO's clipped ratio, with dual clip. Or a function of your own,
    as `module:function` (docs/extending_algorithms.md)."""
    loss_options: Numbers[dict[str, OptionValue]] = {}
    """What a loss of your own is given by keyword."""
    clip_low: Numbers[float] = Field(default=0.2, gt=0, lt=1)
    """PPO clip below: ratios under 1 - clip_low are clipped."""
    clip_high: Numbers[float] = Field(default=0.2, gt=0)
    """PPO clip above: ratios over 1 + clip_high are clipped."""
    dual_clip: Numbers[float] = Field(default=3.0, gt=1)
    """Dual clip constant c for negative advantages."""
    kl_coef: Numbers[float] = Field(default=0.0, ge=0)
    """Coefficient beta of the k3 KL estimate to the reference; 0 builds no reference model."""
    entropy_coef: Numbers[float] = Field(default=0.0, ge=0)
    """Coefficient of the entropy bonus."""
    aggregation: Numbers[
        Literal["token_mean", "sequence_mean", "sequence_sum", "block_token_mean"]
    ] = "token_mean"
    """Mean over all tokens of the global batch; mean over its rows of row means; mean over its rows
    of row sums; or the mean over blocks of `block_rows` rows of their token means (released code:
    its micro-batches), each block weighted by its rows."""
    block_rows: Numbers[int | None] = Field(default=None, gt=0, le=MOST_AT_ONCE)
    """`block_token_mean`: rows of a block, in the order of the batch; the last one may have fewer.
    Needed for that aggregation and refused for others."""
    mismatch_weight: Numbers[bool] = False
    """Multiply the PPO term of on-policy tokens by min(pi_old / pi_engine, `mismatch_cap`), which
    corrects for engine and trainer computing different probabilities from the same weights."""
    mismatch_cap: Numbers[float] = Field(default=2.0, ge=1)
    """Upper end of the mismatch weight; also what `train/mismatch_truncated` counts."""


class OptimizerConfig(Section):
    """Adam with decoupled weight decay (Megatron's distributed optimizer) and its schedule."""

    lr: Numbers[float] = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    min_lr: Numbers[float] = Field(default=0.0, ge=0)
    """Learning rate at the end of the decay."""
    warmup_steps: Numbers[int] = Field(default=0, ge=0, le=MOST_STEPS)
    """Optimizer steps of linear warm-up."""
    schedule: Numbers[Literal["constant", "linear", "cosine"]] = "constant"
    """Decay after warm-up, over the run's optimizer steps."""
    weight_decay: Numbers[float] = Field(default=0.0, ge=0, le=100)
    """Decoupled weight decay."""
    beta1: Numbers[float] = Field(default=0.9, ge=0, lt=1)
    """Adam's first moment decay."""
    beta2: Numbers[float] = Field(default=0.95, ge=0, lt=1)
    """Adam's second moment decay."""
    eps: Numbers[float] = Field(default=1e-8, gt=0, le=1)
    """Adam's epsilon."""
    clip_grad: Numbers[float] = Field(default=1.0, ge=0)
    """Gradient norm above which gradients are scaled down; 0 turns clipping off."""
