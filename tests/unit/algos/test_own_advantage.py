"""An advantage of a user's own, and what is refused before a run starts or in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.algos.advantages import GroupAdvantages, group_advantages
from herl_megatron.algos.own_advantage import OwnAdvantage, check_advantage, open_advantage
from herl_megatron.batching.rows import build_rows
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from tests.unit.hindsight.groups import make_group

MODULE = "own_advantages_of_test"
SOURCE = """
import numpy as np


def less_best(group, *, scale: float = 1.0):
    best = max(r for r in group.rewards if r is not None)
    return [0.0 if r is None else scale * (r - best) for r in group.rewards]


def as_array(group):
    return np.array([0.0 if r is None else r for r in group.rewards]) * np.array(group.valid)


def of_revisions(group):
    return [2.0 if off else -1.0 for off in group.off_policy]


def too_few(group):
    return [1.0]


def nothing(group):
    return None


def texts(group):
    return ["1.0" for _ in group.rewards]


def infinite(group):
    return [float("inf") if r == 1.0 else 0.0 for r in group.rewards]


def by_place(group):
    return dict(enumerate(group.rewards))


def yes_or_no(group):
    return [r == 1.0 for r in group.rewards]


def leaves(group):
    raise SystemExit(3)


def forgets_the_unscored(group):
    return [r - sum(group.rewards) for r in group.rewards]


calls = []


def remembers(group):
    calls.append(group)
    return [float(len(calls)) for _ in group.rewards]
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(MODULE, None)


def config(name: str, **options: Any) -> AlgorithmConfig:
    return AlgorithmConfig(advantage=f"{MODULE}:{name}", advantage_options=options)


def opened(name: str, **options: Any) -> OwnAdvantage:
    own = open_advantage(config(name, **options))
    assert own is not None
    return own


def given(name: str, *rewards: float | None, **options: Any) -> GroupAdvantages:
    on_policy = [True] * (len(rewards) - 1) + [False]
    return group_advantages(rewards, on_policy, config(name, **options), opened(name, **options))


def test_ours_needs_no_module() -> None:
    assert open_advantage(AlgorithmConfig()) is None


def test_rows_have_what_it_returns_and_the_unscored_stay_masked() -> None:
    result = given("less_best", 0.25, None, 1.0, 0.5, scale=2)
    assert result.advantages == (-1.5, 0.0, 0.0, -1.0)
    assert result.weights == (1.0, 0.0, 1.0, 1.0)
    assert result.outcome == "trained"
    assert given("of_revisions", 0.25, None, 1.0).advantages == (-1.0, 0.0, 2.0)


def test_numbers_of_numpy_are_numbers() -> None:
    assert given("as_array", 0.25, None, 1.0).advantages == (0.25, 0.0, 1.0)


def test_groups_without_a_gradient_are_counted_as_ever() -> None:
    assert given("too_few", 0.5, 0.5, 0.5).outcome == "zero_spread"  # it is not asked
    assert given("too_few", 0.5, None, None).outcome == "too_few"
    # The rollouts alone have no spread, which matters only to a standard deviation.
    assert given("of_revisions", 0.5, 0.5, 1.0).outcome == "trained"


def test_rows_of_a_group_are_built_with_it() -> None:
    """No bonus here: rewards 0.25, none, 1.0 less the best, scaled by 2."""
    hindsight = HindsightConfig(enabled=False)
    built = build_rows(make_group([0.25, None, 1.0]), hindsight, config("less_best", scale=2.0), 0)
    assert [row.advantage for row in built.rows] == [-1.5, 0.0, 0.0]
    assert [row.weight for row in built.rows] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["less_best", "as_array", "of_revisions"])
def test_what_is_fine(name: str) -> None:
    check_advantage(opened(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("too_few", r"returned \[1.0\] for rewards \[0.0, 1.0\].*one number for each row"),
        ("nothing", "returned None.*one number for each row"),
        ("texts", "one number for each row"),
        ("by_place", "one number for each row"),
        ("yes_or_no", "one number for each row"),
        ("leaves", "failed for rewards .* SystemExit: 3"),
        ("infinite", "every advantage must be finite"),
        ("forgets_the_unscored", r"failed for rewards .*None.* at .*py:\d+: TypeError"),
        ("remembers", "for the same group; a resumed run would not repeat"),
    ],
)
def test_what_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"algorithm.advantage: {MODULE}:{name}.*{said}"):
        check_advantage(opened(name))


def test_options_must_fit() -> None:
    with pytest.raises(ValueError, match="algorithm.advantage_options has no use for 'sclae'"):
        open_advantage(config("less_best", sclae=1.0))
