"""Rows of a micro-batch -> tensors, and per-token results -> rows.

The label shift happens here and nowhere else: the logits at position t - 1 predict token t, so
response token j of a row with c context tokens is read at position c + j - 1 of its row.

What concerns the model is laid out `[batch, seq]` (bucketed: rows padded on the right, harmless
under causal attention) or `[1, seq]` (packed: rows one after the other, `cu_seqlens` marks the
borders). What concerns the loss is flat: one entry per response token, row after row, without
context or padding. Tokens of a response that the policy did not draw (`TokenRow.drawn`) are context
too: below, "response tokens" are the others.

Under context parallelism a rank gets the positions that it holds (`ContextRank`), and a response
token belongs to the rank that holds the position which predicts it: each token to one rank, to some
ranks none at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herl_megatron.batching.context_parallel import ContextRank
from herl_megatron.batching.shards import Shard, padded_length
from herl_megatron.types import FloatArray, IntArray, TokenRow


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One micro-batch on one rank.

    `tokens` below counts the response tokens that belong to this context-parallel rank: without
    context parallelism all of them. `seq` likewise counts the positions that this rank holds.

    rows: the rows' positions in the shard; empty for a dummy micro-batch.
    input_ids, position_ids: `[batch, seq]` int64.
    cu_seqlens: `[rows + 1]` int32, borders of the whole padded rows when packed, else None.
    logit_index: `[tokens]` int64, positions in `input_ids.T.flatten()` (sequence first, the order
        of Megatron's hidden states) whose logits predict the targets.
    targets: `[tokens]` int64.
    row_tokens: `[rows]` int64, response tokens of each row on all ranks together.
    token_row: `[tokens]` int64, number of each token's row in `rows`.
    token_place: `[tokens]` int64, place of each token among the response tokens of all ranks.

    What a loss needs besides comes from `batching.token_values`.
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor | None
    logit_index: torch.Tensor
    targets: torch.Tensor
    row_tokens: torch.Tensor
    token_row: torch.Tensor
    token_place: torch.Tensor

    @property
    def is_dummy(self) -> bool:
        """True for a micro-batch without rows: it is computed, with weight 0."""
        return not self.rows

    def spread(self, per_row: torch.Tensor) -> torch.Tensor:
        """`[rows]` -> `[tokens]`: each row's value on each of its tokens."""
        return per_row[self.token_row]

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """`[tokens]` -> `[response tokens of all ranks]`, detached: 0 where another rank's are."""
        result = values.new_zeros(int(self.row_tokens.sum()))
        result[self.token_place] = values.detach()
        return result


def pack(
    shard: Shard[TokenRow],
    micro_batch: Sequence[int],
    *,
    packing: bool,
    multiple: int,
    device: torch.device,
    context: ContextRank = ContextRank(),  # noqa: B008 (frozen)
) -> MicroBatch:
    """Tensors of one of `shard.micro_batches`.

    Args:
        shard: the rows and what is known about them.
        micro_batch: positions in `shard.rows`; empty gives a dummy row of two tokens.
        packing: rows one after the other instead of padded to one length.
        multiple: see `shards.length_multiple`.
        device: where the tensors go.
        context: the context-parallel rank whose part it is.
    """
    rows: list[TokenRow] = [shard.rows[place] for place in micro_batch] or [_DUMMY]
    layout = _layout(rows, packing, multiple, context)
    row_tokens = np.array([len(row.targets) for row in rows])
    place = np.flatnonzero(layout.predicts >= 0)
    targets: IntArray = np.concatenate([row.targets for row in rows])
    token_row = np.repeat(np.arange(len(rows)), row_tokens)[place]

    def send(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return MicroBatch(
        rows=tuple(micro_batch),
        input_ids=send(layout.input_ids),
        position_ids=send(layout.position_ids),
        cu_seqlens=None if layout.cu_seqlens is None else send(layout.cu_seqlens),
        logit_index=send(layout.predicts[place]),
        targets=send(targets.astype(np.int64)[place]),
        row_tokens=send(row_tokens),
        token_row=send(token_row),
        token_place=send(place),
    )


def unpack(micro_batch: MicroBatch, values: torch.Tensor) -> list[FloatArray]:
    """Values of the response tokens of all context-parallel ranks, in order -> one float32 array
    `[drawn]` per row; [] for a dummy."""
    if micro_batch.is_dummy:
        return []
    pieces = values.detach().float().cpu().split(micro_batch.row_tokens.tolist())
    return [piece.numpy() for piece in pieces]


_DUMMY = TokenRow("(dummy)", np.zeros(1, np.int32), np.zeros(1, np.int32))


@dataclass(frozen=True, eq=False)
class _Layout:
    """This rank's part of the rows; `predicts` has one entry per response token of all ranks: where
    in sequence-first order it is read, -1 if on another rank."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    predicts: np.ndarray
    cu_seqlens: np.ndarray | None


def _layout(
    rows: Sequence[TokenRow], packing: bool, multiple: int, context: ContextRank
) -> _Layout:
    lengths = [padded_length(row.tokens, multiple) for row in rows]
    if not packing:
        lengths = [max(lengths)] * len(rows)
    held = {length: context.positions(length) for length in set(lengths)}
    input_ids = [
        _token_ids(row, length)[held[length]] for row, length in zip(rows, lengths, strict=True)
    ]
    predicts, start = [], 0
    for line, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        index = np.full(length, -1)
        # Token (b, t) of [batch, seq] is number t * batch + b of the sequence-first order.
        here = np.arange(len(held[length]))
        index[held[length]] = start + here if packing else here * len(rows) + line
        predicts.append(index[_response_positions(row)])
        start += len(here)
    join = np.concatenate if packing else np.stack
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return _Layout(
        input_ids=np.atleast_2d(join(input_ids)),
        position_ids=np.atleast_2d(join([held[length] for length in lengths])),
        predicts=np.concatenate(predicts),
        cu_seqlens=borders if packing else None,
    )


def _token_ids(row: TokenRow, length: int) -> np.ndarray:
    """The row padded on the right with zeros, `[length]` int64."""
    ids = np.zeros(length, np.int64)
    ids[: row.tokens] = np.concatenate([row.context_token_ids, row.response_token_ids])
    return ids


def _response_positions(row: TokenRow) -> np.ndarray:
    """Positions within the row whose logits predict its response tokens (the label shift); none of
    those that the policy did not draw."""
    first = len(row.context_token_ids) - 1
    positions = np.arange(first, first + len(row.response_token_ids))
    return positions if row.drawn is None else positions[row.drawn]
