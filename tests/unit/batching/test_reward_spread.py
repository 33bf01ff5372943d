"""Steps without spread are counted, and several in a row say why."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from herl_megatron.batching.reward_spread import SpreadWatch, likely_cause
from herl_megatron.batching.rows import build_rows
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from herl_megatron.types import Completion, Rollout, RolloutGroup, ScoredGroup
from tests.unit.hindsight.groups import PROMPT, PROMPT_IDS, make_group, make_score

FLAT, WIDE = make_group([0.5, 0.5]), make_group([0.0, 1.0])


class Lines(logging.Handler):
    """Keeps (level, text) of what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def said() -> Iterator[list[tuple[str, str]]]:
    logger, handler = logging.getLogger("herl_megatron.batching.reward_spread"), Lines()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def see(watch: SpreadWatch, step: int, *groups: ScoredGroup) -> float:
    off = HindsightConfig(enabled=False)
    stats = [build_rows(group, off, AlgorithmConfig(), 0).stats for group in groups]
    return watch.see(step, groups, stats)["train/no_spread"]


def test_counts_and_warnings(said: list[tuple[str, str]]) -> None:
    """Flat steps 0, 1, then one with a group that has spread, then 3 to 8."""
    watch = SpreadWatch()
    steps = [(FLAT,), (FLAT, FLAT), (FLAT, WIDE), *[(FLAT,)] * 6]
    assert [see(watch, n, *groups) for n, groups in enumerate(steps)] == [1, 1, 0, *[1] * 6]
    warned = [text.split(":")[0] for level, text in said if level == "WARNING"]
    assert warned == [
        "3 steps in a row without a gradient, the last is step 5",
        "6 steps in a row without a gradient, the last is step 8",
    ]
    assert said[1] == (
        "INFO",
        "step 1: nothing to learn from: of 2 groups 2 have equal rewards and 0 too few responses"
        " with a reward; mean reward 0.500",
    )


def test_too_few_rewards_are_no_spread_either(said: list[tuple[str, str]]) -> None:
    assert see(SpreadWatch(), 0, make_group([None, 0.5]), make_group([None, None])) == 1
    assert "of 2 groups 0 have equal rewards and 2 too few" in said[0][1]
    assert "mean reward 0.500" in said[0][1]


def same_answers(reward: float) -> ScoredGroup:
    tokens = np.array([4, 5], np.int32)
    one = Completion("r", tokens, -tokens.astype(np.float32), "stop", 7)
    rollouts = tuple(Rollout(index, one, "t") for index in range(2))
    scores = (make_score(reward),) * 2
    return ScoredGroup(RolloutGroup(PROMPT, PROMPT_IDS, rollouts), scores)


def scored(reward: float, satisfied: str, unmet: str) -> ScoredGroup:
    group = make_group([reward, reward])
    return ScoredGroup(group.group, (make_score(reward, satisfied.split(), unmet.split()),) * 2)


@pytest.mark.parametrize(
    ("group", "parts", "absent"),
    [
        (scored(1.0, "short polite", ""), ["full reward"], ["same", "no response meets"]),
        (scored(0.0, "", "short polite"), ["no response meets judge: is it"], ["full reward"]),
        (same_answers(0.5), ["responses to a prompt are the same"], ["full reward"]),
        (make_group([None, 0.5]), ["1 of 2 responses have no reward"], ["same"]),
        (scored(0.5, "short", "polite"), ["all of them meet or miss"], ["full", "same"]),
    ],
)
def test_causes(group: ScoredGroup, parts: list[str], absent: list[str]) -> None:
    text = likely_cause([group])
    assert all(part in text for part in parts), text
    assert not any(part in text for part in absent), text
