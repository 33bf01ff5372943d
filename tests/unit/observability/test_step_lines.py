"""Lines that say how a run gets on."""

from __future__ import annotations

import pytest

from herl_megatron.observability.durations import duration
from herl_megatron.observability.step_lines import StepLines, evaluation_line
from tests.unit.observability.clock import Clock

STEP = {
    "reward/mean": 0.4125, "reward/all_satisfied": 0.25, "train/loss": 0.01234,
    "train/kl_old_new": 0.0042, "train/grad_norm": 1.5, "rollout/response_tokens": 311.6,
    "perf/tokens_per_s": 12345.6, "time/total_s": 73.5, "time/rollout_s": 41.2,
    "time/train_s": 25.1, "time/rows_s": 0.1, "time/generation_s": 40.0, "time/other_s": 7.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (-1, "0.0 s"), (73.54, "73.5 s"), (99.94, "99.9 s"), (99.96, "1 min 40 s"),
        (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"), (5580, "1 h 33 min"),
        (172799, "2 d 00 h"), (187200, "2 d 04 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_step_is_one_line() -> None:
    """1590 steps of 73.5 s that began at step 0: 1589 are left, 116,791.5 s or 32 h 27 min."""
    clock = Clock(100.0)
    lines = StepLines("HeRL", range(1590), now=clock)
    clock.now += 73.5
    assert lines.step(0, STEP) == (
        "HeRL 1/1590  reward 0.412  all satisfied 0.250  loss 0.01234  KL 0.0042  grad norm 1.5"
        "  length 312  tokens/s 12,346  73.5 s (rollout 41.2, train 25.1, other 7.1)"
        "  ETA 32 h 27 min"
    )


def test_short_steps_share_a_line_and_the_last_has_its_own() -> None:
    clock = Clock(100.0)
    lines = StepLines("SFT", range(40), now=clock)
    said = []
    for step in range(40):
        clock.now += 1
        if line := lines.step(step, {"sft/loss": 1.0}):
            said.append(line.split("  ")[0])
    assert said == ["SFT 1/40", "SFT 11/40", "SFT 21/40", "SFT 31/40", "SFT 40/40"]
    assert lines.latest == "SFT 40/40  loss 1  1.0 s"


def test_a_resumed_loop_counts_on_and_reckons_with_the_last_steps() -> None:
    """From step 10 on; after 30 slow steps 20 fast ones: those tell the time left, 30 x 2 s."""
    clock = Clock(100.0)
    lines = StepLines("HeRL", range(10, 90), now=clock)
    for step in range(10, 40):
        clock.now += 100
        lines.step(step, {})
    for step in range(40, 60):
        clock.now += 2
        lines.step(step, {})
    assert lines.latest == "HeRL 60/90  2.0 s  ETA 60.0 s"


def test_what_is_between_two_steps_counts_for_the_time_left() -> None:
    """Steps of 10 s, of which 4 s lie outside, such as an evaluation: 8 left are 80 s."""
    clock = Clock(100.0)
    lines = StepLines("HeRL", range(10), now=clock)
    for step in range(2):
        clock.now += 10
        lines.step(step, {"time/total_s": 6.0, "time/train_s": 6.0})
    assert lines.latest == "HeRL 2/10  6.0 s (train 6.0)  ETA 80.0 s"


def test_evaluation_line() -> None:
    values = {"eval/reward": 0.5, "eval/all_satisfied": 0.25, "eval/response_tokens": 36.75,
              "eval/unscored": 3.0, "eval/check/x": 1.0}  # fmt: skip
    assert evaluation_line(10, values) == (
        "evaluation after 10 steps  reward 0.500  all satisfied 0.250  length 37  unscored 3"
    )
