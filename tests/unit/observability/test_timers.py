"""Phase timers against a clock that is moved by hand."""

from __future__ import annotations

import pytest

from herl_megatron.observability.timers import Timers
from tests.unit.observability.clock import Clock


def test_totals_and_laps_add_up_to_the_wall_time() -> None:
    clock = Clock(100.0)
    timers = Timers(now=clock)
    clock.now += 1  # outside of any phase
    with timers("rollout"):
        clock.now += 4
    with timers("train"):
        clock.now += 2
    assert timers.lap() == {"rollout": 4, "train": 2, "other": 1, "total": 7}
    with timers("rollout"):
        clock.now += 3
    clock.now += 5
    assert timers.lap() == {"rollout": 3, "other": 5, "total": 8}
    assert timers.totals() == {"rollout": 7, "train": 2, "other": 6, "total": 15}
    assert list(timers.totals()) == ["rollout", "train", "other", "total"]


def test_a_failed_phase_counts_and_frees_the_timer() -> None:
    clock = Clock(100.0)
    timers = Timers(now=clock)
    with pytest.raises(KeyError), timers("train"):
        clock.now += 2
        raise KeyError
    with timers("export"):
        clock.now += 1
    assert timers.totals() == {"train": 2, "export": 1, "other": 0, "total": 3}


def test_phases_must_not_nest() -> None:
    timers = Timers()
    with timers("rollout"), pytest.raises(AssertionError, match="'train' was started inside"):
        with timers("train"):
            pass
