"""Token log-probs and entropy from logits that are split over TP ranks by vocabulary.

    log p(t) = z_t - log sum_v exp z_v          H = log sum_v exp z_v - sum_v p_v z_v
    d log p(t) / d z_v = 1[v = t] - p_v         dH / d z_v = -p_v (log p_v + H)

with z = logits / temperature over the real vocabulary only. The logits are read in place, a few
tokens at a time in float32, so there is never a float32 copy of all of them; for the backward pass
nothing as large as the logits is kept but the logits themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from herl_megatron.device import scratch_bytes


@dataclass(frozen=True)
class _Settings:
    vocab_size: int
    group: dist.ProcessGroup | None
    inverse_temperature: float
    with_entropy: bool
    chunk_tokens: int


def token_log_probs(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    tp_group: dist.ProcessGroup | None = None,
    temperature: float = 1.0,
    with_entropy: bool = True,
    chunk_tokens: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-prob of each target token and entropy of each distribution, with gradients of both.

    Args:
        logits: `[..., padded_vocab / tp]`, this rank's columns, contiguous (shift the targets, not
            the logits: a slice would be copied). Not modified.
        targets: `[...]`, token ids below `vocab_size`, the same on every TP rank.
        vocab_size: real vocabulary; columns from there on are padding and get no probability.
        tp_group: ranks that share the vocabulary, in column order; None when one rank has it all.
        temperature: divides the logits.
        with_entropy: False skips the entropy and returns None for it.
        chunk_tokens: at most this many tokens are converted to float32 at a time (fewer where
            that is faster, see `device.scratch_bytes`).

    Returns:
        log-probs and entropy, both `[...]` float32 (float64 for float64 logits), the same on every
        rank of `tp_group`.

    Raises:
        ValueError: shapes that do not belong together, or a temperature that is not positive.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    row_bytes = logits.shape[-1] * 4
    chunk_tokens = max(1, min(chunk_tokens, scratch_bytes(logits.device) // row_bytes))
    settings = _Settings(vocab_size, tp_group, 1.0 / temperature, with_entropy, chunk_tokens)
    log_probs, entropy = _LogProbs.apply(logits.flatten(0, -2), targets.flatten(), settings)
    if not with_entropy:
        return log_probs.view(targets.shape), None
    return log_probs.view(targets.shape), entropy.view(targets.shape)


class _LogProbs(torch.autograd.Function):
    """`logits [tokens, columns]`, `targets [tokens]` -> log-probs and entropy, `[tokens]`."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, settings: _Settings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first, real = _columns(logits, settings)
        local = targets - first
        owned = (local >= 0) & (local < real)
        local = local.clamp(0, max(real - 1, 0))
        highest, sums = _local_sums(logits, local, owned, real, settings)
        top = highest.clone()
        if settings.group is not None:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=settings.group)
        # Move the sums from this shard's maximum to the common one; a shard without real columns
        # has sums of 0 and no maximum.
        down = torch.where(highest.isinf(), 0.0, highest - top)
        sum_exp, sum_exp_z, target_z = sums
        sum_exp_z.add_(down * sum_exp).mul_(down.exp())
        sum_exp.mul_(down.exp())
        target_z.add_(down).mul_(owned)
        if settings.group is not None:
            dist.all_reduce(sums, group=settings.group)  # the three sums over the vocabulary
        log_sum = sum_exp.log()
        entropy = log_sum - sum_exp_z / sum_exp
        ctx.save_for_backward(logits, local, owned, top + log_sum, entropy)
        ctx.settings = settings
        return target_z - log_sum, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_probs: torch.Tensor, grad_entropy: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        logits, local, owned, log_normalizer, entropy = ctx.saved_tensors
        settings: _Settings = ctx.settings
        _, real = _columns(logits, settings)
        grad = torch.zeros_like(logits)
        for rows in _chunks(len(logits), settings.chunk_tokens if real else 0):
            log_p = _scaled(logits[rows, :real], settings).sub_(log_normalizer[rows, None])
            p = log_p.exp()
            slope: torch.Tensor = grad_log_probs[rows, None]
            if settings.with_entropy:
                slope = log_p.add_(entropy[rows, None]).mul_(grad_entropy[rows, None]).add_(slope)
            p.mul_(slope).neg_()
            at_target = (grad_log_probs[rows] * owned[rows])[:, None]
            p.scatter_add_(1, local[rows, None], at_target)
            grad[rows, :real] = p.mul_(settings.inverse_temperature)
        return grad, None, None


def _columns(logits: torch.Tensor, settings: _Settings) -> tuple[int, int]:
    """First vocabulary id of this shard and how many of its columns are not padding."""
    width = logits.shape[-1]
    first = 0 if settings.group is None else dist.get_rank(settings.group) * width
    return first, max(0, min(width, settings.vocab_size - first))


def _chunks(tokens: int, size: int) -> Iterator[slice]:
    for start in range(0, tokens, size) if size else ():
        yield slice(start, start + size)


def _scaled(logits: torch.Tensor, settings: _Settings) -> torch.Tensor:
    """A copy in the computing dtype, divided by the temperature."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype, copy=True).mul_(settings.inverse_temperature)


def _local_sums(
    logits: torch.Tensor,
    local: torch.Tensor,
    owned: torch.Tensor,
    real: int,
    settings: _Settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """This shard's maximum of z, `[tokens]`, and its sums relative to that, `[3, tokens]`.

    The sums are sum exp z, sum z exp z, and z_t, the last one meaningless where the shard does not
    own the target.
    """
    tokens = len(logits)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    highest = logits.new_full((tokens,), float("-inf"), dtype=dtype)
    sums = logits.new_zeros((3, tokens), dtype=dtype)
    for rows in _chunks(tokens, settings.chunk_tokens if real else 0):
        z = _scaled(logits[rows, :real], settings)
        highest[rows] = z.amax(-1)
        z.sub_(highest[rows, None])
        sums[2, rows] = z.gather(1, local[rows, None])[:, 0]
        if settings.with_entropy:
            exp = z.exp()
            sums[0, rows] = exp.sum(-1)
            sums[1, rows] = z.mul_(exp).sum(-1)
        else:
            sums[0, rows] = z.exp_().sum(-1)
    return highest, sums
