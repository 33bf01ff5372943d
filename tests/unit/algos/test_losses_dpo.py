"""The two passes against plain autograd of the papers' equations, and numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from herl_megatron.algos.losses_dpo import (
    PairLogProbs,
    PairLossName,
    coefficient_loss,
    pair_loss,
)


def pairs(*columns: list[float]) -> PairLogProbs:
    return PairLogProbs(*(torch.tensor(column, dtype=torch.float64) for column in columns))


def test_by_hand() -> None:
    """h = (-10 + 12) - (-8 + 7) = 3, beta 0.1: rewards 0.2 and -0.1, margin 0.3."""
    one = pairs([-10.0], [-8.0], [-12.0], [-7.0])
    result = pair_loss(one, name="sigmoid", beta=0.1, label_smoothing=0.0)
    assert result.chosen_rewards.item() == pytest.approx(0.2)
    assert result.rejected_rewards.item() == pytest.approx(-0.1)
    assert result.losses.item() == pytest.approx(math.log(1 + math.exp(-0.3)))
    assert result.slopes.item() == pytest.approx(-0.1 / (1 + math.exp(0.3)))
    ipo = pair_loss(one, name="ipo", beta=0.1, label_smoothing=0.0)
    assert ipo.losses.item() == pytest.approx(4.0)  # (3 - 5)^2
    assert ipo.slopes.item() == pytest.approx(-4.0)


def test_before_the_first_step_nothing_is_preferred() -> None:
    start = pairs([-5.0, -3.0], [-4.0, -9.0], [-5.0, -3.0], [-4.0, -9.0])
    metrics = pair_loss(start, name="sigmoid", beta=0.1, label_smoothing=0.0).metrics()
    assert metrics["loss"] == pytest.approx(math.log(2))
    assert (metrics["margin"], metrics["accuracy"]) == (0.0, 0.0)


def test_metrics_are_means_over_pairs() -> None:
    """Margins 0.3, -0.1 and 0: one of three is right."""
    three = pairs([-10.0, -5.0, -1.0], [-8.0, -5.0, -1.0], [-12.0, -4.0, -1.0], [-7.0, -5.0, -1.0])
    metrics = pair_loss(three, name="sigmoid", beta=0.1, label_smoothing=0.0).metrics()
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["margin"] == pytest.approx(0.2 / 3)
    assert metrics["chosen_reward"] == pytest.approx((0.2 - 0.1) / 3)
    assert metrics["rejected_reward"] == pytest.approx(-0.1 / 3)


def test_a_lost_pair_far_out_has_a_finite_loss_and_the_full_slope() -> None:
    far = pairs([-3000.0], [0.0], [0.0], [-3000.0])
    result = pair_loss(far, name="sigmoid", beta=1.0, label_smoothing=0.0)
    assert result.losses.item() == pytest.approx(6000.0)
    assert result.slopes.item() == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("name", "beta", "smoothing"),
    [("sigmoid", 0.1, 0.0), ("sigmoid", 0.7, 0.2), ("ipo", 0.3, 0.0)],
)
def test_second_pass_has_the_gradient_of_the_papers_loss(
    name: PairLossName, beta: float, smoothing: float
) -> None:
    """A small softmax policy over 7 tokens, three pairs of unequal lengths: logits' gradients."""
    torch.manual_seed(0)
    lengths = [3, 5, 1, 4, 2, 6]  # chosen, rejected, chosen, ...
    policy = torch.randn(sum(lengths), 7, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(sum(lengths), 7, dtype=torch.float64)
    tokens = torch.randint(7, (sum(lengths), 1))

    def log_probs(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(1, tokens)[:, 0]

    def by_pair(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.sum() for part in values.split(lengths)]).reshape(-1, 2)

    ref = by_pair(log_probs(reference))
    own = by_pair(log_probs(policy))
    margin = beta * ((own[:, 0] - ref[:, 0]) - (own[:, 1] - ref[:, 1]))
    if name == "ipo":
        plain = (margin / beta - 1 / (2 * beta)) ** 2
    else:
        right, wrong = 1 / (1 + torch.exp(-margin)), 1 / (1 + torch.exp(margin))
        plain = -(1 - smoothing) * right.log() - smoothing * wrong.log()
    plain.mean().backward()
    assert policy.grad is not None
    wanted = policy.grad.clone()
    policy.grad = None

    with torch.no_grad():
        values = by_pair(log_probs(policy))
    result = pair_loss(
        PairLogProbs(values[:, 0], values[:, 1], ref[:, 0], ref[:, 1]),
        name=name, beta=beta, label_smoothing=smoothing,
    )  # fmt: skip
    assert result.losses.mean().item() == pytest.approx(plain.mean().item(), rel=1e-12)
    signed = torch.stack([-result.slopes, result.slopes], 1).flatten() / 3
    coefficients = signed.repeat_interleave(torch.tensor(lengths))
    # The actor computes in float32; the gradient here is good to its rounding.
    coefficient_loss(log_probs(policy), coefficients).loss.backward()
    torch.testing.assert_close(policy.grad, wanted, rtol=1e-6, atol=1e-8)
