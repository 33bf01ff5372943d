"""Sums over the rows of tokens, and their gradient, by hand."""

from __future__ import annotations

import torch

from herl_megatron.algos.loss_inputs import TokenRows
from tests.unit.algos.loss_cases import make_inputs

ROWS = TokenRows(torch.tensor([0, 0, 2, 2, 2]), torch.tensor([2, 4, 3]))
"""Of three rows; of the second no token is here."""


def test_sums_stand_on_every_token_of_the_row() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert ROWS.sum(values).tolist() == [3.0, 3.0, 28.0, 28.0, 28.0]


def test_gradient() -> None:
    """L = sum_t c_t s_t^2: of each of a row's values dL/dx = 2 s sum of the row's c."""
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64, requires_grad=True)
    coefficients = torch.tensor([1.0, 3.0, 5.0, 0.0, -4.0], dtype=torch.float64)
    (coefficients * ROWS.sum(values) ** 2).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [24.0, 24.0, 56.0, 56.0, 56.0]
    assert torch.autograd.gradcheck(lambda x: ROWS.sum(x).sin(), (values,))


def test_means_divide_by_all_tokens_of_the_row() -> None:
    """Also by those on other ranks: the last row has four, of which two are here."""
    inputs = make_inputs(TokenRows(torch.tensor([0, 0, 1, 1]), torch.tensor([2, 4])))
    values = torch.tensor([1.0, 2.0, 6.0, 2.0])
    assert inputs.row_mean(values).tolist() == [1.5, 1.5, 2.0, 2.0]


def test_selected_rows_keep_their_sums() -> None:
    mask = torch.tensor([False, False, True, True, True])
    values = torch.tensor([4.0, 8.0, 16.0])
    assert ROWS.select(mask).sum(values).tolist() == [28.0, 28.0, 28.0]


def test_no_tokens() -> None:
    none = ROWS.select(torch.zeros(5, dtype=torch.bool))
    values = torch.zeros(0, requires_grad=True)
    none.sum(values).sum().backward()
    assert values.grad is not None and values.grad.shape == (0,)


def test_rounding_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """Bit for bit, and summed in more than float32: 1e8 swallows 1 there."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3000, generator=generator) * 1e3
    number = torch.arange(3).repeat_interleave(1000)
    together = TokenRows(number, torch.full((3,), 1000)).sum(values)
    alone = TokenRows(number[:1000], torch.tensor([1000])).sum(values[2000:])
    assert together[2000:].tolist() == alone.tolist()
    large = torch.tensor([1e8, 1.0, -1e8])
    assert TokenRows(torch.zeros(3, dtype=torch.int64), torch.tensor([3])).sum(large)[0] == 1.0
