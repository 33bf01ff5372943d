"""A loss of a user's own, `algorithm.loss: module:function` (docs/extending_algorithms.md).

The function takes `LossInputs` and its options and returns one value per token, `[tokens]`, with
gradient. Before anything expensive starts it is tried on a few made-up rows (`check_loss`): what
would stop a run in its first step, or train on something that depends on how rows are spread over
micro-batches, is found there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from herl_megatron.algos.loss_inputs import LossInputs, TokenRows
from herl_megatron.config.hooks import (
    Hook,
    check_call,
    check_options,
    is_hook,
    load_hook,
    tried,
)
from herl_megatron.config.schema import AlgorithmConfig

TokenLoss = Callable[[LossInputs], torch.Tensor]
"""A loss whose options are given: `[tokens]` values, to be weighted and summed by the caller."""

_ROW_TOKENS = (3, 1, 2)  # of the rows that a loss is tried on; the last is off-policy
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class OwnLoss:
    """The function with its options."""

    hook: Hook
    call: TokenLoss

    def __call__(self, inputs: LossInputs) -> torch.Tensor:
        """Its values, `[tokens]`.

        Raises:
            ValueError: it returned something else.
        """
        values: object = self.call(inputs)
        wanted = tuple(inputs.log_probs.shape)
        if not isinstance(values, torch.Tensor):
            found = f"a {type(values).__name__}"
        elif values.shape != inputs.log_probs.shape or not values.is_floating_point():
            found = f"{values.dtype} of shape {tuple(values.shape)}"
        else:
            return values
        raise ValueError(
            f"{self.hook.key}: {self.hook.name} returned {found}; return one value per token, a"
            f" tensor of shape {wanted} like inputs.log_probs (herl weights and sums it by"
            " algorithm.aggregation)"
        )


def open_loss(algorithm: AlgorithmConfig, *, folder: str | None = None) -> OwnLoss | None:
    """The user's loss; None where `algorithm.loss` names one of ours.

    folder: as `load_hook`.

    Raises:
        ValueError: it cannot be loaded or called, or options do not fit.
    """
    if not is_hook(algorithm.loss):
        return None
    hook = load_hook("algorithm.loss", algorithm.loss, folder=folder)
    check_call(hook, ["inputs"])
    key = "algorithm.loss_options"
    options = check_options(hook, key, algorithm.loss_options, after=1)
    return OwnLoss(hook, partial(hook.call, **options))


def check_loss(loss: OwnLoss, *, with_reference: bool, off_policy: bool) -> None:
    """Try it on made-up rows.

    Args:
        with_reference: whether it will be given the reference model's log-probs.
        off_policy: whether it will be given off-policy tokens too.

    Raises:
        ValueError: it raised, returned no value per token, has no gradient or one that is not
            finite, or a row's values depend on the rows beside it.
    """
    inputs = _made_up(with_reference=with_reference)
    if not off_policy:
        inputs = inputs.select(~inputs.off_policy)
    place = f"{loss.hook.key}: {loss.hook.name}"
    together = _tried(loss, inputs, place)
    if not torch.equal(together[0], _tried(loss, inputs, place)[0]):
        raise ValueError(
            f"{place} returned other values for the same tokens the second time; a resumed run"
            " would not repeat: leave chance and memory out, and change no input in place"
        )
    number = inputs.rows.number
    for row in range(int(number.max()) + 1):
        alone = _tried(loss, inputs.select(number == row), place)
        for what, one, other in zip(
            ("values", "gradient"), alone, (x[number == row] for x in together), strict=True
        ):
            if not torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise ValueError(
                    f"{place}: the {what} of a row depend on the rows beside it in the micro-batch"
                    f" ({other.tolist()}, alone {one.tolist()}), so results would depend on the"
                    " layout; take means over a row with inputs.row_mean, and leave the mean over"
                    " rows to algorithm.aggregation"
                )
    _tried(loss, inputs.select(number < 0), place)  # a micro-batch, or a rank, without such tokens


def _tried(loss: OwnLoss, inputs: LossInputs, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and the gradient of their sum in the log-probs, `[tokens]` each."""
    doing = f" failed on {len(inputs.log_probs)} made-up tokens"
    values = tried(loss.hook, doing, lambda: loss(inputs))
    if not values.requires_grad:
        raise ValueError(
            f"{place}: what it returns has no gradient, also where there are no tokens; compute it"
            " from inputs.log_probs, without detach() or .item()"
        )
    (gradient,) = torch.autograd.grad(
        values.sum(), inputs.log_probs, retain_graph=True, allow_unused=True
    )
    if gradient is None:
        raise ValueError(f"{place}: what it returns does not depend on inputs.log_probs")
    if not (values.isfinite().all() and gradient.isfinite().all()):
        raise ValueError(
            f"{place}: of made-up tokens the values are {values.tolist()} and their gradient"
            f" {gradient.tolist()}; both must be finite"
        )
    return values.detach(), gradient


def _made_up(*, with_reference: bool) -> LossInputs:
    """Rows with ratios within and beyond any clip, and advantages of both signs."""
    old = torch.tensor([-0.5, -2.0, -1.0, -0.7, -3.0, -0.1])
    change = torch.tensor([0.1, -0.9, 0.0, 0.6, 1.2, -0.3])
    row_tokens = torch.tensor(_ROW_TOKENS)
    number = torch.arange(len(_ROW_TOKENS)).repeat_interleave(row_tokens)
    return LossInputs(
        log_probs=(old + change).clamp(max=-0.01).requires_grad_(),
        entropy=torch.linspace(0.5, 2.0, 6).requires_grad_(),
        old_log_probs=old,
        rollout_log_probs=old + 0.05,
        ref_log_probs=old - 0.2 if with_reference else None,
        advantages=torch.tensor([1.0, -0.5, 0.75])[number],
        off_policy=number == len(_ROW_TOKENS) - 1,
        weights=torch.full((6,), 1 / 6),
        rows=TokenRows(number, row_tokens),
    )
