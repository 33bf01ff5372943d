"""The examples of docs/extending_algorithms.md, loaded and run as a user's modules."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from herl_megatron.algos.advantages import group_advantages
from herl_megatron.algos.losses import policy_loss
from herl_megatron.algos.own_advantage import check_advantage, open_advantage
from herl_megatron.algos.own_loss import OwnLoss, check_loss, open_loss
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from tests.pages import blocks
from tests.unit.algos.loss_cases import make_inputs

PAGE = "docs/extending_algorithms.md"
MODULES = ("my_losses", "my_advantages")


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for block in blocks("python"):
        if block.page == PAGE:
            (tmp_path / block.name).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def sections() -> list[dict[str, dict[str, object]]]:
    """The page's configurations, in order."""
    return [yaml.safe_load(block.text) for block in blocks("yaml") if block.page == PAGE]


def loss_of(number: int) -> tuple[OwnLoss, AlgorithmConfig, HindsightConfig]:
    """The loss of the page's configuration `number`, checked as before a run."""
    values = sections()[number]
    algorithm = AlgorithmConfig.model_validate(values["algorithm"])
    hindsight = HindsightConfig.model_validate(values.get("hindsight", {}))
    loss = open_loss(algorithm)
    assert loss is not None
    check_loss(loss, with_reference=False, off_policy=hindsight.off_policy_loss == "own")
    return loss, algorithm, hindsight


def test_the_first_loss_has_one_ratio_for_a_response() -> None:
    """Of the rollout, tokens of ratios 1.5 and 1: sqrt(1.5), clipped where A is 2, not where -1."""
    loss, algorithm, hindsight = loss_of(0)
    assert (algorithm.aggregation, loss.hook.name) == ("sequence_mean", "my_losses:gspo")
    out = policy_loss(make_inputs(), algorithm=algorithm, hindsight=hindsight, own=loss)
    want = (-2 * 1.0004 + math.sqrt(1.5)) / 4
    assert out.parts["loss_policy"].item() == pytest.approx(want)


def test_the_second_loss_takes_all_tokens_with_a_weight_without_gradient() -> None:
    """Ratios 1.5, 1, 1.2, 0.5 to the old policy, none above 4: the slope is -ratio A / 4."""
    loss, algorithm, hindsight = loss_of(1)
    assert loss.hook.name == "my_losses:cispo"
    inputs = make_inputs()
    policy_loss(inputs, algorithm=algorithm, hindsight=hindsight, own=loss).loss.backward()
    assert inputs.log_probs.grad is not None
    want = [-1.5 * 2 / 4, 1 / 4, -1.2 / 4, -0.5 * 3 / 4]
    assert inputs.log_probs.grad.tolist() == pytest.approx(want)
    capped = open_loss(algorithm.model_copy(update={"loss_options": {"high": 1.1}}))
    assert capped is not None
    values = capped(make_inputs())
    logs = torch.tensor([0.3, 0.4, 0.6, 0.1]).log()
    factors = torch.tensor([1.1 * 2, -1.0, 1.1, 0.5 * 3])
    torch.testing.assert_close(values.detach(), -factors * logs)


def test_the_advantage_is_of_ranks() -> None:
    """Of 0.25, 0.5, 1.0 and 1.0, each beats or loses to so many of four; times 2."""
    algorithm = AlgorithmConfig.model_validate(sections()[2]["algorithm"])
    own = open_advantage(algorithm)
    assert own is not None
    check_advantage(own)
    rewards = [0.5, None, 1.0, 0.25, 1.0]
    result = group_advantages(rewards, [True] * 4 + [False], algorithm, own)
    assert result.advantages == pytest.approx((-0.5, 0.0, 1.0, -1.5, 1.0))
    assert result.weights == (1.0, 0.0, 1.0, 1.0, 1.0)
