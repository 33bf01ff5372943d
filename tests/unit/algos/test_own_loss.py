"""A loss of a user's own in the place of ours, and what is refused before a run starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from herl_megatron.algos.losses import policy_loss
from herl_megatron.algos.own_loss import OwnLoss, check_loss, open_loss
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from tests.unit.algos.loss_cases import make_inputs

MODULE = "own_losses_of_test"
SOURCE = """
import torch


def clip(inputs, *, low: float = 0.2, high: float = 0.2, dual: float = 3.0):
    ratio = (inputs.log_probs - inputs.old_log_probs).clamp(-20, 20).exp()
    a = inputs.advantages
    loss = torch.maximum(-ratio * a, -ratio.clamp(1 - low, 1 + high) * a)
    return torch.where((a < 0) & (loss > -dual * a), -dual * a, loss)


def linear(inputs, *, scale: float):
    return -scale * inputs.advantages * inputs.log_probs


def with_reference(inputs):
    return inputs.log_probs - inputs.ref_log_probs


def one_number(inputs):
    return inputs.log_probs.mean()


def whole_numbers(inputs):
    return (inputs.log_probs > 0).long()


def a_list(inputs):
    return inputs.log_probs.tolist()


def detached(inputs):
    return inputs.log_probs.detach()


def of_entropy(inputs):
    return inputs.entropy * 1.0


def of_the_batch(inputs):
    return inputs.log_probs - inputs.log_probs.mean()


def only_the_gradient(inputs):
    x = inputs.log_probs
    return x * len(x) + (x * (1 - len(x))).detach()


def not_finite(inputs):
    return (inputs.log_probs - inputs.old_log_probs).abs().sqrt()  # an infinite slope at 0


def raises(inputs):
    return inputs.log_prob


def by_chance(inputs):
    return inputs.log_probs * torch.rand(())


def leaves(inputs):
    raise SystemExit(3)


def needs_tokens(inputs):
    return inputs.log_probs + 0 * inputs.log_probs.detach().max()


def for_rollouts(inputs):
    assert not inputs.off_policy.any()
    return -inputs.log_probs
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(MODULE, None)


def config(name: str, **options: Any) -> AlgorithmConfig:
    return AlgorithmConfig(loss=f"{MODULE}:{name}", loss_options=options)


def opened(name: str, **options: Any) -> OwnLoss:
    loss = open_loss(config(name, **options))
    assert loss is not None
    return loss


def test_ours_needs_no_module() -> None:
    assert open_loss(AlgorithmConfig()) is None


@pytest.mark.parametrize("off_policy_loss", ["shaped", "clip"])
@pytest.mark.parametrize("changes", [{}, {"mismatch_weight": True, "kl_coef": 0.1}])
def test_the_same_formula_from_outside_gives_the_same_bits(
    off_policy_loss: Any, changes: dict[str, Any]
) -> None:
    hindsight = HindsightConfig(off_policy_loss=off_policy_loss)
    algorithm = AlgorithmConfig(**changes)
    ours, own = make_inputs(), make_inputs()
    expected = policy_loss(ours, algorithm=algorithm, hindsight=hindsight)
    got = policy_loss(own, algorithm=algorithm, hindsight=hindsight, own=opened("clip"))
    expected.loss.backward()
    got.loss.backward()
    assert ours.log_probs.grad is not None and own.log_probs.grad is not None
    assert torch.equal(ours.log_probs.grad, own.log_probs.grad)
    assert {k: v.item() for k, v in got.parts.items()} == {
        k: v.item() for k, v in expected.parts.items()
    }
    assert got.sums.keys() == expected.sums.keys() - {"clip_fraction"}  # nobody knows it


def test_a_loss_for_all_tokens_makes_both_parts() -> None:
    """-2 A log pi: on-policy A = 2, -1 of pi = 0.3, 0.4; off-policy A = 1, 3 of 0.6, 0.1."""
    inputs = make_inputs()
    out = policy_loss(
        inputs,
        algorithm=AlgorithmConfig(),
        hindsight=HindsightConfig(off_policy_loss="own"),
        own=opened("linear", scale=2),
    )
    logs = torch.tensor([0.3, 0.4, 0.6, 0.1], dtype=torch.float64).log()
    policy = -2 * (2 * logs[0] - logs[1]) / 4
    hindsight = -2 * (logs[2] + 3 * logs[3]) / 4
    assert out.parts["loss_policy"].item() == pytest.approx(policy.item())
    assert out.parts["loss_hindsight"].item() == pytest.approx(hindsight.item())
    assert out.loss.item() == pytest.approx((policy + hindsight).item())
    out.loss.backward()
    assert inputs.log_probs.grad is not None
    assert inputs.log_probs.grad.tolist() == pytest.approx([-1.0, 0.5, -0.5, -1.5])


def test_the_weights_of_blocks_reach_a_loss_from_outside() -> None:
    """The rollout's two tokens in a block with a row of 4, the revision's in one by itself: m = 3
    and 2, so 1 / (2 * 3) and 1 / (2 * 2) a token."""
    inputs = replace(make_inputs(), weights=torch.tensor([1 / 6, 1 / 6, 1 / 4, 1 / 4]))
    own = HindsightConfig(off_policy_loss="own")
    out = policy_loss(
        inputs, algorithm=AlgorithmConfig(), hindsight=own, own=opened("linear", scale=1)
    )
    out.loss.backward()
    assert inputs.log_probs.grad is not None  # -A w
    assert inputs.log_probs.grad.tolist() == pytest.approx([-2 / 6, 1 / 6, -1 / 4, -3 / 4])


def test_a_loss_for_rollouts_sees_no_revision() -> None:
    out = policy_loss(
        make_inputs(),
        algorithm=AlgorithmConfig(),
        hindsight=HindsightConfig(),
        own=opened("for_rollouts"),
    )
    want = -(torch.tensor([0.3, 0.4]).log().sum() / 4).item()
    assert out.parts["loss_policy"].item() == pytest.approx(want)


@pytest.mark.parametrize("name", ["clip", "for_rollouts"])
def test_what_is_fine(name: str) -> None:
    check_loss(opened(name), with_reference=False, off_policy=False)


def test_a_reference_is_there_if_the_run_has_one() -> None:
    check_loss(opened("with_reference"), with_reference=True, off_policy=True)
    with pytest.raises(ValueError, match=r"with_reference failed on .* at .*py:\d+: TypeError"):
        check_loss(opened("with_reference"), with_reference=False, off_policy=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one_number", r"returned torch.float32 of shape \(\); return one value per token"),
        ("whole_numbers", r"returned torch.int64 of shape"),
        ("a_list", "returned a list"),
        ("detached", "has no gradient"),
        ("of_entropy", "does not depend on inputs.log_probs"),
        ("of_the_batch", "the values of a row depend on the rows beside it"),
        ("only_the_gradient", "the gradient of a row depend on the rows beside it"),
        ("not_finite", "both must be finite"),
        ("raises", r"failed on 6 made-up tokens at .*py:\d+: AttributeError"),
        ("by_chance", "returned other values for the same tokens the second time"),
        ("leaves", "failed on 6 made-up tokens .*SystemExit: 3"),
        ("needs_tokens", "failed on 0 made-up tokens"),
        ("for_rollouts", "failed on 6 made-up tokens"),
    ],
)
def test_what_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"algorithm.loss: {MODULE}:{name}.*{said}"):
        check_loss(opened(name), with_reference=False, off_policy=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "algorithm.loss_options has no 'scale'"),
        ({"scale": 1.0, "sclae": 2.0}, "algorithm.loss_options has no use for 'sclae'"),
        ({"scale": "2"}, "algorithm.loss_options.scale is '2'"),
    ],
)
def test_options_must_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_loss(config("linear", **options))
