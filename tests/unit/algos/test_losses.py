"""Each formula by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from herl_megatron.algos.loss_inputs import TokenRows
from herl_megatron.algos.losses import (
    behavior_log_probs,
    hindsight_loss,
    importance_ratio,
    k3_kl,
    mismatch_weight,
    policy_loss,
    ppo_clip_loss,
    sft_loss,
)
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from tests.unit.algos.loss_cases import make_inputs

HINDSIGHT = HindsightConfig(gamma=0.5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.1, 2.0, -2.2, False),
        (1.5, 2.0, -2.0 * 1.28, True),  # gains stop at 1 + clip_high
        (0.5, 2.0, -1.0, False),  # a worse ratio of a good token keeps its gradient
        (0.5, -1.0, 0.8, True),  # losses stop shrinking at 1 - clip_low
        (1.5, -1.0, 1.5, False),
        (2.9, -1.0, 2.9, False),
        (7.0, -1.0, 3.0, True),  # dual clip
        (7.0, -2.0, 6.0, True),
    ],
)
def test_ppo_clip(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    r = torch.tensor([ratio], requires_grad=True)
    value, marked = ppo_clip_loss(
        r, torch.tensor([advantage]), clip_low=0.2, clip_high=0.28, dual_clip=3.0
    )
    assert value.item() == pytest.approx(loss)
    assert marked.item() is clipped
    value.sum().backward()
    assert r.grad is not None
    assert r.grad.item() == pytest.approx(0.0 if clipped else -advantage)


def test_ratio_is_clamped() -> None:
    far = torch.tensor([1000.0, -1000.0])
    ratio = importance_ratio(far, torch.zeros(2))
    assert ratio.tolist() == pytest.approx([math.exp(20), math.exp(-20)])


@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_hindsight(gamma: float) -> None:
    log_rho = torch.tensor([0.0, -2.0, 1.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    loss = hindsight_loss(log_rho - 3, torch.full_like(log_rho, -3), advantages, gamma=gamma)
    rho = [math.exp(x) for x in log_rho.tolist()]
    want = [-a * r / (r + gamma) for a, r in zip(advantages.tolist(), rho, strict=True)]
    assert loss.tolist() == pytest.approx(want)
    loss.sum().backward()
    assert log_rho.grad is not None
    # d f / d log rho = gamma rho / (rho + gamma)^2
    slopes = [
        -a * gamma * r / (r + gamma) ** 2 for a, r in zip(advantages.tolist(), rho, strict=True)
    ]
    assert log_rho.grad.tolist() == pytest.approx(slopes)


def test_hindsight_at_the_extremes() -> None:
    log_probs = torch.tensor([-0.5, -300.0, -1.0], requires_grad=True)
    behavior = torch.tensor([-400.0, -0.5, -math.inf])
    loss = hindsight_loss(log_probs, behavior, torch.ones(3), gamma=0.1)
    assert loss.tolist() == pytest.approx([-1.0, 0.0, -1.0])
    loss.sum().backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == pytest.approx([0.0, 0.0, 0.0])


def test_k3() -> None:
    got = k3_kl(torch.tensor([-1.0, -1.0, -500.0]), torch.tensor([-1.0, -2.0, 0.0]))
    want = [0.0, math.exp(-1) + 1 - 1, math.exp(20) - 500 - 1]
    assert got.tolist() == pytest.approx(want)


def test_behavior() -> None:
    inputs = make_inputs()
    assert behavior_log_probs(inputs, "sampler") is inputs.rollout_log_probs
    assert behavior_log_probs(inputs, "old") is inputs.old_log_probs
    assert behavior_log_probs(inputs, "one").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("behavior", "rhos"), [("sampler", (2.0, 0.25)), ("old", (1.2, 0.5)), ("one", (0.6, 0.1))]
)
def test_whole_loss(behavior: str, rhos: tuple[float, float]) -> None:
    algorithm = AlgorithmConfig(kl_coef=0.1, entropy_coef=0.01)
    hindsight = HindsightConfig.model_validate({"gamma": 0.5, "behavior": behavior})
    out = policy_loss(make_inputs(), algorithm=algorithm, hindsight=hindsight)
    policy = (-1.2 * 2.0 + 1.0) / 4
    off_policy = -(rhos[0] / (rhos[0] + 0.5) + 3 * rhos[1] / (rhos[1] + 0.5)) / 4
    # d = log 2, 0, 0, -log 2 in exp(d) - d - 1
    kl = ((2 - math.log(2) - 1) + (0.5 + math.log(2) - 1)) / 4
    want = {
        "loss_policy": policy,
        "loss_hindsight": off_policy,
        "kl": kl,
        "loss_kl": 0.1 * kl,
        "entropy": 2.5,
        "loss_entropy": -0.025,
        "loss": policy + off_policy + 0.1 * kl - 0.025,
    }
    assert {name: value.item() for name, value in out.parts.items()} == pytest.approx(want)
    assert out.loss.item() == pytest.approx(want["loss"])
    sums = {name: value.item() for name, value in out.sums.items()}
    assert sums == pytest.approx(
        {
            "clip_fraction": 1.0,
            "kl_old_new": 1.5 - 1 - math.log(1.5),
            "ratio_mean": 2.5,
            "sampled_tokens": 2.0,
            # r = 0.2 / 0.9 and 0.4 / 0.9 in sum r - 1 - log r
            "mismatch_mean": 0.6 / 0.9,
            "mismatch_truncated": 0.0,
            "mismatch_kl": 0.6 / 0.9 - 2 - math.log(0.08 / 0.81),
            "revision_ratio_mean": sum(rhos),
            "revision_tokens": 2.0,
        },
        abs=1e-6,
    )
    assert out.maxima["mismatch_max"].item() == pytest.approx(0.4 / 0.9)


def test_off_policy_tokens_may_be_clipped_instead_of_shaped() -> None:
    """rho = pi / mu = 1.5 and 0.5 with A = 2: -min(1.5, 1.2) * 2 and -0.5 * 2, summed with weights
    1/2; the first token is past the clip and has no gradient."""
    log_probs = torch.tensor([0.15, 0.1]).log().requires_grad_()
    inputs = replace(
        make_inputs(),
        log_probs=log_probs,
        entropy=torch.zeros(2),
        old_log_probs=torch.full((2,), -5.0),  # of another context: not looked at
        rollout_log_probs=torch.tensor([0.1, 0.2]).log(),
        ref_log_probs=None,
        advantages=torch.full((2,), 2.0),
        off_policy=torch.tensor([True, True]),
        weights=torch.full((2,), 0.5),
        rows=TokenRows(torch.tensor([0, 0]), torch.tensor([2])),
    )
    output = policy_loss(
        inputs, algorithm=AlgorithmConfig(), hindsight=HindsightConfig(off_policy_loss="clip")
    )
    assert output.parts["loss_hindsight"].item() == pytest.approx(-(2.4 + 1.0) / 2)
    assert output.parts["loss_policy"].item() == 0.0
    output.loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([0.0, -0.5])


def test_mismatch_weight() -> None:
    old = torch.log(torch.tensor([0.2, 0.4, 0.9])).requires_grad_()
    rollout = torch.log(torch.tensor([0.4, 0.1, 0.3]))
    weight = mismatch_weight(old, rollout, cap=3.5)
    assert weight.tolist() == pytest.approx([0.5, 3.5, 3.0])
    assert not weight.requires_grad


def test_loss_with_mismatch_weight() -> None:
    """Weights 2 (truncated from 4) and 1/2 on the two on-policy tokens, none on the revisions'."""
    inputs = replace(
        make_inputs(), rollout_log_probs=torch.log(torch.tensor([0.05, 0.8, 0.3, 0.4]))
    )
    plain, weighted = (
        policy_loss(inputs, algorithm=AlgorithmConfig(mismatch_weight=on), hindsight=HINDSIGHT)
        for on in (False, True)
    )
    # PPO terms by token: ratio 1.5 is clipped at 1.2 for the advantage 2; ratio 1 for -1
    assert plain.parts["loss_policy"].item() == pytest.approx((-1.2 * 2 + 1) / 4)
    assert weighted.parts["loss_policy"].item() == pytest.approx((-2 * 1.2 * 2 + 0.5 * 1) / 4)
    assert weighted.parts["loss_hindsight"].item() == plain.parts["loss_hindsight"].item()
    (gradient,) = torch.autograd.grad(weighted.loss, inputs.log_probs)
    # 0 where clipped; 1/2 * ratio * -A / 4; revisions: -A gamma rho / (rho + gamma)^2 / 4
    revisions = [-0.5 * 2 / 2.5**2 / 4, -3 * 0.5 * 0.25 / 0.75**2 / 4]
    assert gradient.tolist() == pytest.approx([0.0, 0.125, *revisions])
    sums = {name: value.item() for name, value in weighted.sums.items()}
    assert sums["mismatch_mean"] == pytest.approx(4.5)
    assert sums["mismatch_truncated"] == 1.0
    assert sums["mismatch_kl"] == pytest.approx(4.5 - 2 - math.log(4 * 0.5))
    assert weighted.maxima["mismatch_max"].item() == pytest.approx(4.0)


def test_terms_without_coefficient_are_not_there() -> None:
    inputs = replace(make_inputs(), ref_log_probs=None, entropy=torch.full((4,), math.nan))
    out = policy_loss(inputs, algorithm=AlgorithmConfig(), hindsight=HINDSIGHT)
    assert set(out.parts) == {"loss", "loss_policy", "loss_hindsight", "entropy"}
    assert out.loss.isfinite()


def test_numbers_of_the_other_kind_of_token_do_not_matter() -> None:
    inputs = make_inputs()
    clean = policy_loss(inputs, algorithm=AlgorithmConfig(), hindsight=HINDSIGHT)
    (want,) = torch.autograd.grad(clean.loss, inputs.log_probs)
    revised = inputs.off_policy
    nan = torch.full((4,), math.nan)
    dirty = replace(
        inputs,
        old_log_probs=torch.where(revised, nan, inputs.old_log_probs),
        rollout_log_probs=torch.where(revised, inputs.rollout_log_probs, nan),
    )
    out = policy_loss(dirty, algorithm=AlgorithmConfig(), hindsight=HINDSIGHT)
    (got,) = torch.autograd.grad(out.loss, inputs.log_probs)
    assert out.loss.item() == clean.loss.item()
    assert torch.equal(got, want)


def test_dummy_tokens_count_nowhere() -> None:
    inputs = replace(make_inputs(), weights=torch.zeros(4))
    out = policy_loss(inputs, algorithm=AlgorithmConfig(kl_coef=0.1), hindsight=HINDSIGHT)
    numbers = {**out.parts, **out.sums, **out.maxima}
    assert {value.item() for value in numbers.values()} == {0.0}


def test_reported_loss_is_a_copy() -> None:
    out = policy_loss(make_inputs(), algorithm=AlgorithmConfig(), hindsight=HINDSIGHT)
    before = out.parts["loss"].item()
    out.loss.detach().div_(4)  # in place, as Megatron's schedules do
    assert out.parts["loss"].item() == before


def test_sft() -> None:
    log_probs = torch.tensor([-1.0, -2.0, -6.0], requires_grad=True)
    weights = torch.tensor([0.5, 0.5, 0.0])
    out = sft_loss(log_probs, weights)
    assert out.loss.item() == pytest.approx(1.5)
    assert out.sums["sampled_tokens"].item() == 2
    out.loss.backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == [-0.5, -0.5, 0.0]
