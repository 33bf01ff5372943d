"""Which stage holds which layer, against lists that were written down by hand."""

from __future__ import annotations

import pytest

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.megatron.transformer_config import _pipeline_layout
from herl_megatron.models.stages import chunk_sizes, layers_of_rank, stage_of_layer
from herl_megatron.plan.layouts import _stage_counts
from herl_megatron.plan.timing import _unevenness


def test_layers_that_divide_are_dealt_out_evenly() -> None:
    stages = [stage_of_layer(i, num_layers=8, pp=2, vpp=1) for i in range(8)]
    assert stages == [0, 0, 0, 0, 1, 1, 1, 1]
    stages = [stage_of_layer(i, num_layers=8, pp=2, vpp=2) for i in range(8)]
    assert stages == [0, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("layers", "chunks", "sizes"),
    [
        (94, 4, (23, 24, 24, 23)),
        (95, 4, (24, 24, 24, 23)),
        (93, 4, (23, 23, 24, 23)),
        (5, 2, (3, 2)),
        (3, 3, (1, 1, 1)),
        (94, 8, (11, 12, 12, 12, 12, 12, 12, 11)),
    ],
)
def test_the_chunks_before_the_last_hold_what_is_left_over(
    layers: int, chunks: int, sizes: tuple[int, ...]
) -> None:
    assert chunk_sizes(layers, chunks) == sizes


def test_uneven_interleaved_chunks() -> None:
    # 7 layers in 4 chunks, 2 each but for the last, which go to ranks 0 1 0 1.
    by_rank = [layers_of_rank(7, rank=rank, pp=2, vpp=2) for rank in range(2)]
    assert by_rank == [[(0, 1), (4, 5)], [(2, 3), (6,)]]
    stages = [stage_of_layer(i, num_layers=7, pp=2, vpp=2) for i in range(7)]
    assert stages == [0, 0, 1, 1, 0, 0, 1]


def test_megatron_is_told_only_where_stages_differ() -> None:
    assert _pipeline_layout(8, MegatronConfig(pipeline_parallel=2)) is None
    assert _pipeline_layout(5, MegatronConfig()) is None
    assert _pipeline_layout(5, MegatronConfig(pipeline_parallel=2)) == [
        ["embedding", "decoder", "decoder", "decoder"],
        ["decoder", "decoder", "loss"],
    ]


def test_more_chunks_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_hidden_layers 3 is less than .* 4, .*use fewer"):
        chunk_sizes(3, 4)


def test_a_plan_tries_stages_that_hold_about_equally_many_layers() -> None:
    # At most 5 % more than the mean: 3 stages of 32, 31 and 31, not 9 of 11 and 10.
    assert _stage_counts(94) == [1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16]
    assert _stage_counts(28) == [1, 2, 4, 7, 14]
    assert _unevenness(28, MegatronConfig(pipeline_parallel=4)) == 1.0
    assert _unevenness(94, MegatronConfig(pipeline_parallel=4)) == 24 * 4 / 94
