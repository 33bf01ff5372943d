"""What a loss reads of a micro-batch's response tokens besides their log-probs, as tensors.

Supervised fine-tuning reads nothing more; the policy's loss reads `PolicyTokens`, the second pass
of a loss over whole responses one coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herl_megatron.batching.pack import MicroBatch
from herl_megatron.batching.shards import Shard
from herl_megatron.types import CoefficientRow, FloatArray, TokenRow, TrainRow


@dataclass(frozen=True, eq=False)
class PolicyTokens:
    """Of each response token that belongs to this rank, `[tokens]`; of a dummy, zeros.

    advantages, rollout_log_probs: float32.
    off_policy: bool.
    old_log_probs, ref_log_probs: float32, or None where the rows have none, as a dummy has none.
    """

    advantages: torch.Tensor
    rollout_log_probs: torch.Tensor
    off_policy: torch.Tensor
    old_log_probs: torch.Tensor | None
    ref_log_probs: torch.Tensor | None


def policy_tokens(shard: Shard[TrainRow], batch: MicroBatch) -> PolicyTokens:
    """Of one of the shard's micro-batches, on its device."""
    rows = [shard.rows[number] for number in batch.rows]
    per_token = [row.rollout_log_probs for row in rows] or [np.zeros(1, np.float32)]
    revised = np.array([row.off_policy for row in rows] or [False])
    return PolicyTokens(
        advantages=_spread(batch, [row.advantage for row in rows]),
        rollout_log_probs=_flat(batch, per_token),
        off_policy=batch.spread(torch.from_numpy(revised).to(batch.targets.device)),
        old_log_probs=_known(batch, [row.old_log_probs for row in rows], "old_log_probs"),
        ref_log_probs=_known(batch, [row.ref_log_probs for row in rows], "ref_log_probs"),
    )


def token_coefficients(shard: Shard[CoefficientRow], batch: MicroBatch) -> torch.Tensor:
    """Each row's coefficient on each of its tokens, `[tokens]` float32; 0 on a dummy."""
    return _spread(batch, [shard.rows[number].coefficient for number in batch.rows])


def block_means(shard: Shard[TokenRow], batch: MicroBatch) -> torch.Tensor | None:
    """`Shard.block_means` of the micro-batch's rows, `[rows]` float32; None without blocks."""
    if not shard.block_means:
        return None
    means = [shard.block_means[number] for number in batch.rows] or [1.0]
    return torch.tensor(means, device=batch.targets.device)


def _spread(batch: MicroBatch, per_row: Sequence[float]) -> torch.Tensor:
    values = np.array(per_row or [0.0], np.float32)
    return batch.spread(torch.from_numpy(values).to(batch.targets.device))


def _flat(batch: MicroBatch, per_row: Sequence[FloatArray]) -> torch.Tensor:
    values = np.concatenate(list(per_row)).astype(np.float32)
    return torch.from_numpy(values).to(batch.targets.device)[batch.token_place]


def _known(
    batch: MicroBatch, per_row: Sequence[FloatArray | None], name: str
) -> torch.Tensor | None:
    given = [values for values in per_row if values is not None]
    assert len(given) in (0, len(per_row)), f"{name} must be given for all rows or for none"
    return _flat(batch, given) if given else None
