"""Tensors of a micro-batch by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
import pytest
import torch

from herl_megatron.batching.context_parallel import ContextRank
from herl_megatron.batching.pack import MicroBatch, pack, unpack
from herl_megatron.batching.shards import Shard
from herl_megatron.batching.token_values import policy_tokens, token_coefficients
from herl_megatron.types import CoefficientRow, TokenRow, TrainRow

Row = TypeVar("Row", bound=TokenRow)
ROWS = (
    TrainRow(
        prompt_id="a",
        context_token_ids=np.array([11, 12, 13], np.int32),
        response_token_ids=np.array([14, 15], np.int32),
        rollout_log_probs=np.array([-0.1, -0.2], np.float32),
        reward=1.0,
        advantage=0.5,
        old_log_probs=np.array([-1, -2], np.float32),
    ),
    TrainRow(
        prompt_id="b",
        context_token_ids=np.array([21], np.int32),
        response_token_ids=np.array([22, 23, 24], np.int32),
        rollout_log_probs=np.array([-0.3, -0.4, -0.5], np.float32),
        reward=0.0,
        advantage=-2.0,
        off_policy=True,
        old_log_probs=np.array([-3, -4, -5], np.float32),
    ),
)
SHARD = Shard(
    rows=ROWS,
    row_indices=(0, 1),
    total_rows=2,
    micro_batches=((0, 1), ()),
    loss_tokens=5,
    loss_rows=2,
)


def shard_of(rows: tuple[Row, ...]) -> Shard[Row]:
    """`SHARD` with other rows of the same lengths."""
    return Shard(
        rows=rows, row_indices=SHARD.row_indices, total_rows=SHARD.total_rows,
        micro_batches=SHARD.micro_batches, loss_tokens=SHARD.loss_tokens,
        loss_rows=SHARD.loss_rows,
    )  # fmt: skip


def packed(
    places: tuple[int, ...],
    packing: bool,
    multiple: int,
    *,
    cp: tuple[int, int] = (0, 1),
    rows: tuple[TokenRow, ...] = ROWS,
) -> MicroBatch:
    return pack(
        shard_of(rows),
        places,
        packing=packing,
        multiple=multiple,
        device=torch.device("cpu"),
        context=ContextRank(*cp),
    )


def test_padded() -> None:
    batch = packed((0, 1), False, 4)
    assert batch.input_ids.tolist() == [
        [11, 12, 13, 14, 15, 0, 0, 0],
        [21, 22, 23, 24, 0, 0, 0, 0],
    ]
    assert batch.position_ids.tolist() == [list(range(8))] * 2
    assert batch.cu_seqlens is None
    # Sequence first with two rows: row a's positions 2 and 3, row b's 0, 1 and 2.
    assert batch.logit_index.tolist() == [4, 6, 1, 3, 5]
    assert batch.input_ids.T.flatten()[batch.logit_index].tolist() == [13, 14, 21, 22, 23]


def test_packed() -> None:
    batch = packed((1, 0), True, 4)
    assert batch.input_ids.tolist() == [[21, 22, 23, 24, 11, 12, 13, 14, 15, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch.cu_seqlens is not None and batch.cu_seqlens.tolist() == [0, 4, 12]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.logit_index.tolist() == [0, 1, 2, 6, 7]
    assert batch.targets.tolist() == [22, 23, 24, 14, 15]


@pytest.mark.parametrize("packing", [False, True])
def test_values_per_token(packing: bool) -> None:
    batch = packed((0, 1), packing, 1)
    assert batch.targets.tolist() == [14, 15, 22, 23, 24]
    assert batch.row_tokens.tolist() == [2, 3]
    tokens = policy_tokens(SHARD, batch)
    assert tokens.advantages.tolist() == [0.5, 0.5, -2, -2, -2]
    assert tokens.advantages.dtype == tokens.rollout_log_probs.dtype == torch.float32
    assert tokens.off_policy.tolist() == [False, False, True, True, True]
    assert tokens.rollout_log_probs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5])
    assert tokens.old_log_probs is not None
    assert tokens.old_log_probs.tolist() == [-1, -2, -3, -4, -5]
    assert tokens.ref_log_probs is None
    assert batch.spread(torch.tensor([0.25, 4.0])).tolist() == [0.25, 0.25, 4, 4, 4]


@pytest.mark.parametrize("packing", [False, True])
def test_a_row_of_tokens_alone_gives_the_same_tensors(packing: bool) -> None:
    """What SFT packs: no field of RL's is read."""
    plain = tuple(TokenRow(r.prompt_id, r.context_token_ids, r.response_token_ids) for r in ROWS)
    want, got = packed((1, 0), packing, 4), packed((1, 0), packing, 4, rows=plain)
    for field in fields(MicroBatch):
        left, right = getattr(want, field.name), getattr(got, field.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("packing", [False, True])
def test_coefficients_lie_on_every_token_of_their_row(packing: bool) -> None:
    weighted = tuple(
        CoefficientRow(r.prompt_id, r.context_token_ids, r.response_token_ids, c)
        for r, c in zip(ROWS, (0.25, -3.0), strict=True)
    )
    shard = shard_of(weighted)
    batch = packed((1, 0), packing, 4, rows=weighted)
    found = token_coefficients(shard, batch)
    assert (found.tolist(), found.dtype) == ([-3, -3, -3, 0.25, 0.25], torch.float32)
    assert token_coefficients(shard, packed((), packing, 4, rows=weighted)).tolist() == [0.0]


def test_log_probs_are_given_for_all_rows_or_for_none() -> None:
    half = replace(SHARD, rows=(ROWS[0], replace(ROWS[1], old_log_probs=None)))
    with pytest.raises(AssertionError, match="old_log_probs must be given for all rows"):
        policy_tokens(half, packed((0, 1), False, 1))


def test_unpack_is_the_inverse() -> None:
    batch = packed((1, 0), False, 1)
    values = torch.tensor([1.0, 2, 3, 4, 5], requires_grad=True)
    assert [row.tolist() for row in unpack(batch, values)] == [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize("packing", [False, True])
def test_dummy(packing: bool) -> None:
    batch = packed((), packing, 4)
    assert batch.is_dummy
    assert batch.input_ids.shape == (1, 4)
    assert batch.logit_index.tolist() == [0]
    tokens = policy_tokens(SHARD, batch)
    assert tokens.old_log_probs is None and tokens.ref_log_probs is None
    assert (tokens.advantages.tolist(), tokens.rollout_log_probs.tolist()) == ([0.0], [0.0])
    assert tokens.off_policy.tolist() == [False]
    assert unpack(batch, torch.zeros(1)) == []


def test_padded_over_two_context_ranks() -> None:
    """Eight tokens in four chunks: rank 0 holds the first and the last, rank 1 the two between."""
    first, second = (packed((0, 1), False, 4, cp=(rank, 2)) for rank in (0, 1))
    assert first.input_ids.tolist() == [[11, 12, 0, 0], [21, 22, 0, 0]]
    assert second.input_ids.tolist() == [[13, 14, 15, 0], [23, 24, 0, 0]]
    assert first.position_ids.tolist() == [[0, 1, 6, 7]] * 2
    assert second.position_ids.tolist() == [[2, 3, 4, 5]] * 2
    # 14 and 15 are read at positions 2 and 3; 22, 23, 24 at 0, 1, 2.
    assert first.targets.tolist() == [22, 23] and first.logit_index.tolist() == [1, 3]
    assert second.targets.tolist() == [14, 15, 24] and second.logit_index.tolist() == [0, 2, 1]
    assert policy_tokens(SHARD, first).advantages.tolist() == [-2, -2]
    of_second = policy_tokens(SHARD, second)
    assert of_second.advantages.tolist() == [0.5, 0.5, -2]
    assert of_second.old_log_probs is not None
    assert of_second.old_log_probs.tolist() == [-1, -2, -5]
    assert first.row_tokens.tolist() == second.row_tokens.tolist() == [2, 3]
    assert second.spread(torch.tensor([0.25, 4.0])).tolist() == [0.25, 0.25, 4]


def test_packed_over_two_context_ranks() -> None:
    """Row b has four tokens, row a five padded to eight; each is cut into four chunks."""
    first, second = (packed((1, 0), True, 4, cp=(rank, 2)) for rank in (0, 1))
    assert first.input_ids.tolist() == [[21, 24, 11, 12, 0, 0]]
    assert second.input_ids.tolist() == [[22, 23, 13, 14, 15, 0]]
    assert first.position_ids.tolist() == [[0, 3, 0, 1, 6, 7]]
    for batch in (first, second):
        assert batch.cu_seqlens is not None and batch.cu_seqlens.tolist() == [0, 4, 12]
    assert first.targets.tolist() == [22] and first.logit_index.tolist() == [0]
    assert second.targets.tolist() == [23, 24, 14, 15]
    assert second.logit_index.tolist() == [0, 1, 2, 3]


def test_tokens_of_all_context_ranks_together() -> None:
    """Parts of three ranks add up to the whole, row by row; a rank may have no token at all."""
    whole = torch.zeros(5)
    counts = []
    for rank in range(3):
        batch = packed((0, 1), True, 6, cp=(rank, 3))
        counts.append(len(batch.targets))
        whole += batch.whole(batch.targets.float())
    # Six chunks of one token. Row a's are read at positions 2 and 3, row b's at 0, 1 and 2.
    assert counts == [1, 1, 3]
    assert [row.tolist() for row in unpack(batch, whole)] == [[14, 15], [22, 23, 24]]
    assert [len(packed((), True, 6, cp=(rank, 3)).targets) for rank in range(3)] == [1, 0, 0]
