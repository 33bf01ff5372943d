"""Each promise of `batching.shards`, on random lengths; small plans by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from herl_megatron.batching.shards import (
    MICRO_BATCH_COST_TOKENS,
    MicroBatches,
    gather_rows,
    length_multiple,
    make_shards,
    plan_micro_batches,
)
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.types import TrainRow

BUDGET = 4096


def lognormal(count: int, *, seed: int, longest: int = 10**9) -> list[int]:
    drawn = np.random.default_rng(seed).lognormal(5.5, 0.8, count)
    return [max(2, min(longest, int(length))) for length in drawn]


def used_tokens(rows: Sequence[int], lengths: Sequence[int], multiple: int, packing: bool) -> int:
    """What the budget is held against, written out again."""
    padded = [lengths[row] + (-lengths[row]) % multiple for row in rows]
    return sum(padded) if packing else len(rows) * max(padded, default=0)


def plan(lengths: Sequence[int], *, dp: int = 1, **changes: object) -> tuple[MicroBatches, ...]:
    arguments = {"token_budget": BUDGET, "packing": False} | changes
    return plan_micro_batches(lengths, dp=dp, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("dp", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 5, 200])
@pytest.mark.parametrize(("multiple", "divisor"), [(1, 1), (8, 4)])
def test_promises(packing: bool, dp: int, count: int, multiple: int, divisor: int) -> None:
    lengths = lognormal(count, seed=count)
    if count > 1:
        lengths[1] = BUDGET + 7
    ranks = plan(lengths, dp=dp, packing=packing, multiple=multiple, count_divisor=divisor)
    assert len(ranks) == dp
    rows = sorted(itertools.chain(*itertools.chain(*ranks)))
    assert rows == list(range(count))  # 1
    for rank in ranks:
        for micro_batch in rank:  # 2
            if used_tokens(micro_batch, lengths, multiple, packing) > BUDGET:
                assert micro_batch == (1,)
    sizes = {len(rank) for rank in ranks}  # 3
    assert len(sizes) == 1 and sizes.pop() % divisor == 0
    for rank in ranks:  # 4
        if () in rank:
            assert all(len(micro_batch) <= 1 for micro_batch in rank)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("dp", "count"), [(2, 128), (4, 256), (8, 512)])
def test_ranks_are_balanced(dp: int, count: int, seed: int) -> None:
    lengths = lognormal(count, seed=seed, longest=BUDGET)
    ranks = plan(lengths, dp=dp, packing=True)
    for power in (1, 2):  # 5
        sums = [sum(lengths[row] ** power for rows in rank for row in rows) for rank in ranks]
        assert max(sums) / (sum(sums) / dp) <= 1.10


@pytest.mark.parametrize("seed", range(6))
def test_little_padding(seed: int) -> None:
    lengths = lognormal(512, seed=seed, longest=BUDGET)
    for packing, limit in ((True, 1.0), (False, 1.05)):
        (rank,) = plan(lengths, packing=packing)
        processed = sum(used_tokens(rows, lengths, 1, packing) for rows in rank)
        assert processed / sum(lengths) <= limit
    # As few packed sequences as the sum allows, give or take 5 %.
    (rank,) = plan(lengths, packing=True)
    assert len(rank) <= 1.05 * sum(lengths) / BUDGET + 1


def test_same_input_same_plan() -> None:
    lengths = lognormal(100, seed=3)
    assert plan(lengths, dp=4) == plan(list(lengths), dp=4)


def test_buckets_by_hand() -> None:
    long, short = 2 * MICRO_BATCH_COST_TOKENS, 10
    # Together the short row would be padded by more than a micro-batch costs.
    assert plan([short, long]) == (((1,), (0,)),)
    # A bucket of 11 and 10 pads one token.
    assert plan([10, 11]) == (((1, 0),),)
    # Three of 11 exceed a budget of 30; two of them cost less in one bucket than apart.
    (rank,) = plan([11, 11, 11], token_budget=30)
    assert sorted(map(len, rank)) == [1, 2]


def test_packing_by_hand() -> None:
    # First fit, longest first: 6 | 5 4 | 3 3 2 -> 6+3, 5+4, 3+2 with a budget of 9.
    assert plan([5, 3, 6, 2, 4, 3], token_budget=9, packing=True) == (((2, 1), (0, 4), (5, 3)),)


def test_equal_counts_by_hand() -> None:
    # Rank 0 holds the row of 100 (two micro-batches after rounding up need a dummy), rank 1 three
    # rows of 30, halved into one and two.
    ranks = plan([100, 30, 30, 30], dp=2, count_divisor=2)
    assert ranks == (((0,), ()), ((1,), (2, 3)))


def row(name: str, context: int, response: int, weight: float = 1.0) -> TrainRow:
    return TrainRow(
        prompt_id=name,
        context_token_ids=np.arange(context, dtype=np.int32),
        response_token_ids=np.arange(response, dtype=np.int32),
        rollout_log_probs=np.zeros(response, np.float32),
        reward=0.0,
        advantage=1.0,
        weight=weight,
    )


def test_shards_and_back() -> None:
    rows = [row("a", 3, 2), row("b", 5, 4, weight=0.0), row("c", 1, 7), row("d", 2, 2)]
    megatron = MegatronConfig(data_parallel=2, micro_batch_tokens=64)
    shards = make_shards(rows, megatron=megatron)
    # Lengths 5, 8, 4 (b is left out): c to rank 0, a and d to rank 1.
    assert [[r.prompt_id for r in shard.rows] for shard in shards] == [["c"], ["a", "d"]]
    assert [shard.row_indices for shard in shards] == [(2,), (0, 3)]
    assert [shard.micro_batches for shard in shards] == [((0,),), ((0, 1),)]
    assert [(shard.loss_tokens, shard.loss_rows) for shard in shards] == [(11, 3)] * 2
    names = [[r.prompt_id for r in shard.rows] for shard in shards]
    assert gather_rows(shards, names) == ["a", None, "c", "d"]


BLOCK_LAYOUTS: list[dict[str, Any]] = [
    {},
    {"data_parallel": 2},
    {"data_parallel": 3, "packing": True},
    {"micro_batch_tokens": 1},
    {"pipeline_parallel": 2, "virtual_pipeline": 2},
]


@pytest.mark.parametrize("layout", BLOCK_LAYOUTS, ids=str)
def test_blocks_follow_the_batch_not_the_layout(layout: dict[str, Any]) -> None:
    """b is left out: blocks are a and c (2 + 7), d and e (2 + 4), f alone (5)."""
    rows = [row("a", 3, 2), row("b", 5, 40, weight=0.0), row("c", 1, 7), row("d", 2, 2)]
    rows += [row("e", 9, 4), row("f", 1, 5)]
    megatron = MegatronConfig(**{"micro_batch_tokens": 64, **layout})
    shards = make_shards(rows, megatron=megatron, block_rows=2)
    found = {
        r.prompt_id: mean
        for shard in shards
        for r, mean in zip(shard.rows, shard.block_means, strict=True)
    }
    assert found == {"a": 4.5, "c": 4.5, "d": 3.0, "e": 3.0, "f": 5.0}
    assert all(shard.block_means == () for shard in make_shards(rows, megatron=megatron))


def test_interleaved_pipeline_needs_a_multiple_of_its_size() -> None:
    megatron = MegatronConfig(pipeline_parallel=4, virtual_pipeline=2, micro_batch_tokens=64)
    (shard,) = make_shards([row("a", 3, 2)], megatron=megatron)
    assert shard.micro_batches == ((0,), (), (), ())


@pytest.mark.parametrize(("context", "response"), [(0, 3), (3, 0)])
def test_row_without_tokens(context: int, response: int) -> None:
    with pytest.raises(ValueError, match=f"'x' has {context} context and {response} response"):
        make_shards([row("x", context, response)], megatron=MegatronConfig())


def test_log_probs_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"'x' has 3 response tokens but .* \[3, 2\] tokens"):
        short = replace(row("x", 2, 3), old_log_probs=np.zeros(2, np.float32))
        make_shards([short], megatron=MegatronConfig())


@pytest.mark.parametrize(
    ("tp", "sp", "cp", "multiple"),
    [
        (1, False, 1, 1),
        (4, False, 1, 1),
        (4, True, 1, 4),
        (1, False, 2, 4),
        (2, True, 2, 4),
        (4, True, 2, 8),
        (3, True, 4, 24),
    ],
)
def test_rows_are_cut_evenly_over_cp_and_sp(tp: int, sp: bool, cp: int, multiple: int) -> None:
    """The least number that 2 * CP chunks divide and, over CP, the TP ranks (CP 1: no chunks)."""
    megatron = MegatronConfig(tensor_parallel=tp, sequence_parallel=sp, context_parallel=cp)
    assert length_multiple(megatron) == multiple
