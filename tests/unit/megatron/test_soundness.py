"""What is found in weights: any value that is not finite, wherever it is, and sizes of no model."""

from __future__ import annotations

import math

import pytest
import torch

from herl_megatron.megatron.soundness import (
    LARGEST_SANE,
    WeightReport,
    largest_weight,
    merge_reports,
    weight_report,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 63, 64, 1023, 1024, 2998, 2999])
def test_one_bad_value_anywhere(dtype: torch.dtype, value: float, place: int) -> None:
    weights = torch.full((1000, 3), 0.5, dtype=dtype)
    weights.view(-1)[place] = value
    others = [torch.full((7,), -2.0, dtype=dtype), torch.zeros(0, dtype=dtype)]
    assert float(largest_weight([others[0], weights, others[1]])) == math.inf
    assert weight_report({"a": others[0], "b": weights}) == WeightReport(
        ("a", "b"), ("b",), math.inf
    )


def test_largest_is_a_magnitude() -> None:
    assert float(largest_weight([torch.tensor([0.5, -3.0]), torch.tensor([[2.0]])])) == 3.0
    assert float(largest_weight([torch.zeros(0)])) == 0.0
    assert float(largest_weight([])) == 0.0


def test_parts_of_a_parameter_count_once() -> None:
    """Two TP ranks hold halves of `a`; only one half is bad."""
    first = WeightReport(("a", "b"), (), 1.0)
    second = WeightReport(("a", "c"), ("a",), math.inf)
    merged = merge_reports([first, second])
    assert merged == WeightReport(("a", "b", "c"), ("a",), math.inf)
    assert merged.problem == "1 of 3 parameters hold NaN or infinity, first a"


def test_sizes_of_no_model() -> None:
    assert WeightReport(("a",), (), LARGEST_SANE).problem == ""
    assert "the largest weight is 3e+29" in WeightReport(("a",), (), 3e29).problem
