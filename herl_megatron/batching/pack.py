"""Rows of a micro-batch -> tensors, and per-token results -> rows.

The label shift happens here and nowhere else: the logits at position t - 1 predict token t, so
response token j of a row with c context tokens is read at position c + j - 1 of its row.

What concerns the model is laid out `[batch, seq]` (bucketed: rows padded on the right, harmless
under causal attention) or `[1, seq]` (packed: rows one after the other, `cu_seqlens` marks the
borders). What concerns the loss is flat: one entry per response token, row after row, without
context or padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herl_megatron.batching.schedule import Shard, padded_length
from herl_megatron.types import FloatArray, IntArray, TrainRow


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One micro-batch; `tokens` below counts response tokens only.

    rows: the rows' positions in the shard; empty for a dummy micro-batch.
    input_ids, position_ids: `[batch, seq]` int64.
    cu_seqlens: `[rows + 1]` int32, borders of the padded rows when packed, else None.
    logit_index: `[tokens]` int64, positions in `input_ids.T.flatten()` (sequence first, the order
        of Megatron's hidden states) whose logits predict the targets.
    targets: `[tokens]` int64.
    row_tokens: `[rows]` int64, response tokens of each row.
    advantages, rollout_log_probs: `[tokens]` float32.
    hindsight_mask: `[tokens]` bool.
    old_log_probs, ref_log_probs: `[tokens]` float32, or None where the shard has none.
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor | None
    logit_index: torch.Tensor
    targets: torch.Tensor
    row_tokens: torch.Tensor
    advantages: torch.Tensor
    rollout_log_probs: torch.Tensor
    hindsight_mask: torch.Tensor
    old_log_probs: torch.Tensor | None
    ref_log_probs: torch.Tensor | None

    @property
    def is_dummy(self) -> bool:
        """True for a micro-batch without rows: it is computed, with weight 0."""
        return not self.rows

    def spread(self, per_row: torch.Tensor) -> torch.Tensor:
        """`[rows]` -> `[tokens]`: each row's value on each of its tokens."""
        return per_row.repeat_interleave(self.row_tokens)


def pack(
    shard: Shard, micro_batch: Sequence[int], *, packing: bool, multiple: int, device: torch.device
) -> MicroBatch:
    """Tensors of one of `shard.micro_batches`.

    Args:
        shard: the rows and what is known about them.
        micro_batch: positions in `shard.rows`; empty gives a dummy row of two tokens.
        packing: rows one after the other instead of padded to one length.
        multiple: see `schedule.length_multiple`.
        device: where the tensors go.
    """
    rows = [shard.rows[place] for place in micro_batch] or [_DUMMY]
    input_ids, position_ids, starts, cu_seqlens = _layout(rows, packing, multiple)
    batch = input_ids.shape[0]
    # Token (b, t) of [batch, seq] is number t * batch + b of the sequence-first order.
    index = [
        (start[1] + _response_positions(row)) * batch + start[0]
        for row, start in zip(rows, starts, strict=True)
    ]
    row_tokens = np.array([len(row.response_token_ids) for row in rows])

    def send(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    def per_token(per_row: Sequence[float], dtype: type) -> torch.Tensor:
        return send(np.repeat(np.array(per_row, dtype), row_tokens))

    return MicroBatch(
        rows=tuple(micro_batch),
        input_ids=send(input_ids),
        position_ids=send(position_ids),
        cu_seqlens=None if cu_seqlens is None else send(cu_seqlens),
        logit_index=send(np.concatenate(index)),
        targets=send(_concatenate([row.response_token_ids for row in rows], np.int64)),
        row_tokens=send(row_tokens),
        advantages=per_token([row.advantage for row in rows], np.float32),
        rollout_log_probs=send(_concatenate([row.rollout_log_probs for row in rows], np.float32)),
        hindsight_mask=per_token([row.is_revision for row in rows], np.bool_),
        old_log_probs=_known(shard.old_log_probs, micro_batch, "old_log_probs", device),
        ref_log_probs=_known(shard.ref_log_probs, micro_batch, "ref_log_probs", device),
    )


def unpack(micro_batch: MicroBatch, values: torch.Tensor) -> list[FloatArray]:
    """Per-token values (`[tokens]`) -> one float32 array `[response]` per row; [] for a dummy."""
    if micro_batch.is_dummy:
        return []
    pieces = values.detach().float().cpu().split(micro_batch.row_tokens.tolist())
    return [piece.numpy() for piece in pieces]


_DUMMY = TrainRow(
    prompt_id="(dummy)",
    context_token_ids=np.zeros(1, np.int32),
    response_token_ids=np.zeros(1, np.int32),
    rollout_log_probs=np.zeros(1, np.float32),
    reward=0.0,
    advantage=0.0,
    weight=0.0,
)


def _layout(
    rows: Sequence[TrainRow], packing: bool, multiple: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]], np.ndarray | None]:
    """Token ids and position ids `[batch, seq]`, each row's (batch, position) start, borders."""
    padded = [padded_length(row.tokens, multiple) for row in rows]
    if packing:
        borders = np.concatenate([[0], np.cumsum(padded)]).astype(np.int32)
        starts = [(0, int(border)) for border in borders[:-1]]
        shape = (1, int(borders[-1]))
    else:
        borders = None
        starts = [(place, 0) for place in range(len(rows))]
        shape = (len(rows), max(padded))
    input_ids = np.zeros(shape, np.int64)
    position_ids = np.zeros(shape, np.int64)
    if not packing:
        position_ids[:] = np.arange(shape[1])
    for row, (line, start), length in zip(rows, starts, padded, strict=True):
        middle = start + len(row.context_token_ids)
        input_ids[line, start:middle] = row.context_token_ids
        input_ids[line, middle : start + row.tokens] = row.response_token_ids
        if packing:
            position_ids[line, start : start + length] = np.arange(length)
    return input_ids, position_ids, starts, borders


def _response_positions(row: TrainRow) -> np.ndarray:
    """Positions within the row whose logits predict its response tokens (the label shift)."""
    first = len(row.context_token_ids) - 1
    return np.arange(first, first + len(row.response_token_ids), dtype=np.int64)


def _concatenate(arrays: Sequence[IntArray] | Sequence[FloatArray], dtype: type) -> np.ndarray:
    return np.concatenate(list(arrays)).astype(dtype)


def _known(
    per_row: Sequence[FloatArray | None],
    micro_batch: Sequence[int],
    name: str,
    device: torch.device,
) -> torch.Tensor | None:
    """Values of the micro-batch's rows, flat `[tokens]`; None where the shard has none."""
    values = [per_row[place] for place in micro_batch]
    known = [value for value in values if value is not None]
    if not known:
        return None
    assert len(known) == len(values), f"{name} must be given for all rows of a shard or for none"
    return torch.from_numpy(_concatenate(known, np.float32)).to(device)
