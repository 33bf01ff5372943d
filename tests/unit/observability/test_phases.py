"""What is being done, said while it lasts."""

from __future__ import annotations

import logging

import pytest

from herl_megatron.observability.phases import Phases, phases
from herl_megatron.observability.timers import Timers
from tests.unit.observability.clock import Clock


def test_phases_may_overlap() -> None:
    clock = Clock()
    doing = Phases(clock)
    engines, trainer = doing("engines"), doing("trainer")
    engines.__enter__()
    clock.now = 2.0
    trainer.__enter__()
    clock.now = 5.0
    assert doing.current() == "engines 5.0 s, trainer 3.0 s"
    engines.__exit__(None, None, None)
    assert doing.current() == "trainer 3.0 s"
    trainer.__exit__(None, None, None)
    assert doing.current() == ""


def test_what_lasts_is_named_after_1_2_and_4_minutes() -> None:
    clock = Clock()
    doing = Phases(clock)
    said = []
    with doing("train"):
        for second in range(0, 301):
            clock.now = float(second)
            said += doing.overdue()
    assert said == [
        "train: under way for 60.0 s",
        "train: under way for 2 min 00 s",
        "train: under way for 4 min 00 s",
    ]


def test_reminders_after_a_sleep_of_the_machine_are_one() -> None:
    clock = Clock()
    doing = Phases(clock)
    with doing("train"):
        clock.now = 1000.0
        assert doing.overdue() == ["train: under way for 16 min 40 s"]
        assert doing.overdue() == []


def test_announced_phases_are_logged_and_failed_ones_do_not_say_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="herl_megatron")
    clock = Clock()
    doing = Phases(clock)
    with doing("Ray", announce=True):
        clock.now = 3.25
    with pytest.raises(ValueError), doing("engines", announce=True):
        raise ValueError("no")
    assert [r.message for r in caplog.records] == ["Ray ...", "Ray: done in 3.2 s", "engines ..."]
    assert doing.current() == ""


def test_timers_name_their_phase(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="herl_megatron")
    timers = Timers()
    with timers("weight_sync", announce="first weight sync"):
        assert phases.current().startswith("first weight sync ")
    with timers("train"):
        assert phases.current().startswith("train ")
    assert phases.current() == ""
    assert [r.message.split(":")[0] for r in caplog.records] == [
        "first weight sync ...", "first weight sync",
    ]  # fmt: skip


def test_the_reminding_thread_ends_with_its_block() -> None:
    import threading

    with phases.reminding():
        assert any(thread.name == "herl-phases" for thread in threading.enumerate())
    assert not any(thread.name == "herl-phases" for thread in threading.enumerate())
