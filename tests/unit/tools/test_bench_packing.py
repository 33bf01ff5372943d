"""The counts of tools/bench/bench_packing.py on a step small enough for paper."""

from __future__ import annotations

import pytest

from herl_megatron.config.schema import MegatronConfig
from tools.bench.bench_packing import RowFlops, count

LENGTHS = [10, 7, 5, 4]


def test_packed_over_two_ranks() -> None:
    """Padded to 12, 8, 8, 4 by 2 * CP; the ranks get 12 + 4 and 8 + 8 tokens."""
    megatron = MegatronConfig(
        data_parallel=2, context_parallel=2, packing=True, micro_batch_tokens=16
    )
    counts = count(LENGTHS, megatron, RowFlops(linear=100.0, squared=1.0))
    assert counts.padding == pytest.approx(32 / 26)
    # 1600 + 144 + 16 against 1600 + 64 + 64
    assert counts.balance == pytest.approx(1760 / 1744)
    assert counts.micro_batches == 1


def test_padded_rows_and_a_dummy_count() -> None:
    """One row on two ranks: the other rank computes a dummy of two tokens."""
    megatron = MegatronConfig(data_parallel=2, micro_batch_tokens=16)
    counts = count([6], megatron, RowFlops(linear=1.0, squared=0.0))
    assert (counts.padding, counts.balance) == pytest.approx((8 / 6, 6 / 4))
    one = count(LENGTHS, MegatronConfig(micro_batch_tokens=40), RowFlops(1.0, 0.0))
    assert one.padding == pytest.approx(40 / 26)
