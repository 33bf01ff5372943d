"""Token log-probs and entropy from hidden states and an output matrix that is split over TP ranks.

    log p(t) = z_t - log sum_v exp z_v          H = log sum_v exp z_v - sum_v p_v z_v
    d log p(t) / d z_v = 1[v = t] - p_v         dH / d z_v = -p_v (log p_v + H)

with logits z = (hidden weight^T) / temperature over the real vocabulary only. Logits exist for one
chunk of tokens at a time, in one buffer of the compute dtype or of float32. The last chunk's stay
there for the backward pass, which begins with them and computes those of the other chunks again: a
fourth product with the output matrix beside the three of any gradient. Inside a chunk logits are
read in place, a few tokens at a time in float32.

Each TP rank's sums are relative to the log-normalizer of its own part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from herl_megatron.device import scratch_bytes

_WIDENED_ROWS = 16384  # of the output matrix's gradient, converted to float32 at a time


@dataclass(frozen=True)
class LogitBuffer:
    """How much of the logits exists at a time.

    tokens: logits exist for this many tokens at a time; all but the last so many are computed again
        in the backward pass.
    fp32: keep logits in float32 where states and matrix are narrower. Their gradient is rounded to
        the matrix's dtype before it is multiplied with it, as without.
    """

    tokens: int = 512
    fp32: bool = False


@dataclass(frozen=True)
class _Settings:
    vocab_size: int
    group: dist.ProcessGroup | None
    inverse_temperature: float
    with_entropy: bool
    buffer: LogitBuffer


def token_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    vocab_size: int,
    tp_group: dist.ProcessGroup | None = None,
    temperature: float = 1.0,
    with_entropy: bool = True,
    buffer: LogitBuffer = LogitBuffer(),  # noqa: B008 (frozen)
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-prob of each target token and entropy of each distribution, with gradients of both.

    The gradient of `hidden` is this rank's part: its sum over `tp_group` is the caller's.

    Args:
        hidden: `[..., hidden]`, final hidden states, the same on every TP rank.
        weight: `[padded_vocab / tp, hidden]`, this rank's rows of the output matrix.
        targets: `[...]`, token ids below `vocab_size`, the same on every TP rank.
        vocab_size: real vocabulary; rows from there on are padding and get no probability.
        tp_group: ranks that share the vocabulary, in row order; None when one rank has it all.
        temperature: divides the logits.
        with_entropy: False skips the entropy and returns None for it.
        buffer: for the logits.

    Returns:
        log-probs and entropy, both `[...]` float32 (float64 for float64 states), the same on every
        rank of `tp_group`.

    Raises:
        ValueError: shapes that do not belong together, or a temperature that is not positive.
    """
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden states {tuple(hidden.shape)} do not fit targets {tuple(targets.shape)}"
            f" and an output matrix {tuple(weight.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    settings = _Settings(vocab_size, tp_group, 1.0 / temperature, with_entropy, buffer)
    apply: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _LogProbs.apply
    log_probs, entropy = apply(hidden.flatten(0, -2), weight, targets.flatten(), settings)
    if not with_entropy:
        return log_probs.view(targets.shape), None
    return log_probs.view(targets.shape), entropy.view(targets.shape)


class _LogProbs(torch.autograd.Function):
    """`hidden [tokens, hidden]`, `weight`, `targets [tokens]` -> log-probs and entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        settings: _Settings,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first, real = _rows(weight, settings)
        local = targets - first
        owned = (local >= 0) & (local < real)
        local = local.clamp(0, max(real - 1, 0))
        tokens, dtype = len(hidden), torch.promote_types(hidden.dtype, torch.float32)
        # A shard without real rows has sums of 0 and no normalizer.
        own_normalizer = hidden.new_full((tokens,), float("-inf"), dtype=dtype)
        sums = hidden.new_zeros((3, tokens), dtype=dtype)
        buffer = hidden.new_empty(
            (min(tokens, settings.buffer.tokens) if real else 0, real),
            dtype=dtype if settings.buffer.fp32 else hidden.dtype,
        )
        for chunk in _slices(tokens, len(buffer)):
            logits = _multiply(hidden[chunk], weight[:real], buffer)
            _local_sums(logits, local[chunk], settings, own_normalizer[chunk], sums[:, chunk])
        top = own_normalizer.clone()
        if settings.group is not None:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=settings.group)
        # Move the sums from this shard's normalizer to the largest one.
        down = torch.where(own_normalizer.isinf(), 0.0, own_normalizer - top)
        sum_exp, sum_exp_z, target_z = sums
        sum_exp_z.add_(down * sum_exp).mul_(down.exp())
        sum_exp.mul_(down.exp())
        target_z.add_(down).mul_(owned)
        if settings.group is not None:
            dist.all_reduce(sums, group=settings.group)  # the three sums over the vocabulary
        log_sum = sum_exp.log()
        entropy = log_sum - sum_exp_z / sum_exp
        ctx.save_for_backward(hidden, weight, buffer, local, owned, top + log_sum, entropy)
        ctx.settings = settings
        return target_z - log_sum, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_log_probs: torch.Tensor, grad_entropy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        hidden, weight, buffer, local, owned, log_normalizer, entropy = ctx.saved_tensors
        settings: _Settings = ctx.settings
        _, real = _rows(weight, settings)
        grad_hidden = torch.zeros_like(hidden)
        chunks = list(_slices(len(hidden), len(buffer)))
        grad_weight = (
            _WeightGradient(weight, real, several=len(chunks) > 1)
            if ctx.needs_input_grad[1]
            else None
        )
        for chunk in reversed(chunks):
            if chunk is chunks[-1]:
                logits = buffer[: len(hidden[chunk])]  # as the forward pass left them
            else:
                logits = _multiply(hidden[chunk], weight[:real], buffer)
            slopes = grad_log_probs[chunk], grad_entropy[chunk]
            normalizers = log_normalizer[chunk], entropy[chunk]
            _to_gradient(logits, local[chunk], owned[chunk], settings, slopes, normalizers)
            logits = logits.to(weight.dtype)
            torch.mm(logits, weight[:real], out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight.add(logits, hidden[chunk])
        return grad_hidden, None if grad_weight is None else grad_weight.total(), None, None


class _WeightGradient:
    """Sum over chunks, where there are several in float32 at least: bf16 would lose bits."""

    def __init__(self, weight: torch.Tensor, real: int, *, several: bool) -> None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._dtype = weight.dtype
        self._real = real
        self._sum = torch.zeros_like(weight, dtype=wide if several else weight.dtype)

    def add(self, grad_logits: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add the part of one chunk: `[tokens, real]` and `[tokens, hidden]`."""
        if self._sum.dtype == hidden.dtype:
            self._sum[: self._real].addmm_(grad_logits.t(), hidden)
            return
        for rows in _slices(self._real, _WIDENED_ROWS):  # no second matrix of the whole size
            self._sum[: self._real][rows] += grad_logits[:, rows].t() @ hidden

    def total(self) -> torch.Tensor:
        """`[padded_vocab / tp, hidden]` in the weight's dtype, 0 where the vocabulary is padded."""
        return self._sum.to(self._dtype)


def _rows(weight: torch.Tensor, settings: _Settings) -> tuple[int, int]:
    """First vocabulary id of this shard and how many of its rows are not padding."""
    height = len(weight)
    first = 0 if settings.group is None else dist.get_rank(settings.group) * height
    return first, max(0, min(height, settings.vocab_size - first))


def _slices(tokens: int, size: int) -> Iterator[slice]:
    for start in range(0, tokens, size) if size else ():
        yield slice(start, start + size)


def _cached(logits: torch.Tensor) -> Iterator[slice]:
    """Rows whose float32 copies stay where the device reads them fast."""
    row_bytes = logits.shape[-1] * 4
    return _slices(len(logits), max(1, scratch_bytes(logits.device) // row_bytes))


def _multiply(hidden: torch.Tensor, weight: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Logits `[tokens, real]`, in the first rows of `buffer`."""
    logits = buffer[: len(hidden)]
    if logits.dtype == weight.dtype:
        return torch.mm(hidden, weight.t(), out=logits)
    if weight.is_cuda:  # exact products, summed in float32, without copies of the operands
        return torch.mm(hidden, weight.t(), out_dtype=logits.dtype, out=logits)
    wide = hidden.to(logits.dtype)
    for rows in _slices(len(weight), _WIDENED_ROWS):  # no second matrix of the whole size
        logits[:, rows] = wide @ weight[rows].to(logits.dtype).t()
    return logits


def _widened(logits: torch.Tensor) -> torch.Tensor:
    """In the computing dtype: a copy, or where they have it already the logits themselves."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _local_sums(
    logits: torch.Tensor,
    local: torch.Tensor,
    settings: _Settings,
    own_normalizer: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Fill this shard's log sum exp z, `[tokens]`, and its sums relative to that, `[3, tokens]`.

    The sums are sum exp z (so 1), sum z exp z, and z_t, the last one meaningless where the shard
    does not own the target.
    """
    sums[0] = 1
    for rows in _cached(logits):
        z = _widened(logits[rows])
        if settings.inverse_temperature != 1:
            z = z * settings.inverse_temperature
        log_p, at = z.log_softmax(-1), local[rows, None]
        log_p_target = log_p.gather(1, at)
        own_normalizer[rows] = (z.gather(1, at) - log_p_target)[:, 0]
        sums[2, rows] = log_p_target[:, 0]
        if settings.with_entropy:
            sums[1, rows] = log_p.exp().mul_(log_p).sum(-1)


def _to_gradient(
    logits: torch.Tensor,
    local: torch.Tensor,
    owned: torch.Tensor,
    settings: _Settings,
    slopes: tuple[torch.Tensor, torch.Tensor],
    normalizers: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Overwrite `logits [tokens, real]` with the gradient of log-probs and entropy in them.

    slopes: gradients of both outputs, `[tokens]`; normalizers: log sum_v exp z_v and the entropy.
    """
    # The derivative of z in the logits is in both slopes.
    grad_log_probs, grad_entropy = (slope * settings.inverse_temperature for slope in slopes)
    log_normalizer, entropy = normalizers
    for rows in _cached(logits):
        z = _widened(logits[rows])
        z.mul_(settings.inverse_temperature).sub_(log_normalizer[rows, None])  # log p
        if settings.with_entropy:
            p = z.exp()
            z.add_(entropy[rows, None]).mul_(-grad_entropy[rows, None])
            z.sub_(grad_log_probs[rows, None]).mul_(p)
        else:
            z.exp_().mul_(-grad_log_probs[rows, None])
        at_target = (grad_log_probs[rows] * owned[rows])[:, None]
        z.scatter_add_(1, local[rows, None], at_target)
        if z.dtype != logits.dtype:
            logits[rows] = z
