"""The summary's numbers, by hand, and that people are shown the same ones."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herl_megatron.observability.summary import build_summary, print_summary
from herl_megatron.types import StepMetrics


@dataclass
class Result:
    reward: float
    all_satisfied: float


def step(number: int, **values: float) -> StepMetrics:
    """One step's metrics: no hindsight unless given."""
    hindsight = {
        "hindsight/experiences": 0, "hindsight/experiences_too_long": 0, "hindsight/revisions": 0,
        "hindsight/accepted": 0, "hindsight/bonus_sum": 0, "scoring/revisions_unscored": 0,
    }  # fmt: skip
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return StepMetrics(step=number, values=hindsight | named)


HISTORY = (
    StepMetrics(step=0, values={"eval/reward": 0.3, "rollout/engine_restarts": 1}),
    step(0, rollout__engine_restarts=2,
         reward__mean=0.35, reward__all_satisfied=0.05, hindsight__experiences=3,
         hindsight__revisions=6, hindsight__accepted=2, hindsight__gain=0.5,
         hindsight__bonus_sum=0.25, hindsight__replays=5, scoring__revisions_unscored=2),
    step(1, reward__mean=0.45, reward__all_satisfied=0.15, hindsight__experiences=1,
         hindsight__revisions=1, hindsight__accepted=1, hindsight__gain=-0.25,
         hindsight__bonus_sum=0.5, hindsight__experiences_too_long=2),
    step(2, train__no_spread=1),  # nothing scored, nothing revised: no reward, no gain
)  # fmt: skip


def test_numbers_of_a_run_with_evaluation() -> None:
    summary = build_summary(
        HISTORY, before=Result(0.3, 0.1), after=Result(0.6, 0.4), seconds={"train": 1.23456}
    )
    assert summary == {
        "reward": {"before": 0.3, "after": 0.6},
        "all_satisfied": {"before": 0.1, "after": 0.4},
        "measured_on": "held-out prompts",
        "steps": 3,
        "steps_without_spread": 1,
        "hindsight": {
            "experiences": 4,
            "experiences_too_long": 2,
            "revisions": 7,
            "accepted": 3,
            "bonus_sum": 0.75,
            "replays": 5,
            "replays_impossible": 0,
            "gain": pytest.approx((4 * 0.5 + 1 * -0.25) / 5),  # over scored revisions
        },
        "scoring": {"revisions_unscored": 2},
        "engine_restarts": 3,  # one of them in an evaluation
        "seconds": {"train": 1.235},
    }


def test_without_evaluation_first_and_last_rollouts_stand_in() -> None:
    summary = build_summary(HISTORY, before=None, after=None, seconds={})
    assert summary["reward"] == {"before": 0.35, "after": 0.45}
    assert summary["all_satisfied"] == {"before": 0.05, "after": 0.15}
    assert summary["measured_on"] == "training rollouts"


def test_a_run_of_no_steps() -> None:
    same = Result(0.3, 0.1)
    summary = build_summary(HISTORY[:1], before=same, after=same, seconds={"total": 1})
    assert summary["steps"] == 0
    assert summary["reward"] == {"before": 0.3, "after": 0.3}
    assert summary["hindsight"]["gain"] is None
    assert build_summary((), before=None, after=None, seconds={})["reward"] == {
        "before": None, "after": None,
    }  # fmt: skip


def printed(summary: dict[str, Any]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100)
    print_summary(summary, folder=Path("runs/my [run]"), console=console)
    return out.getvalue()


def test_the_table_shows_the_same_numbers() -> None:
    summary = build_summary(
        HISTORY, before=Result(0.3, 0.1), after=Result(0.6, 0.4),
        seconds={"start": 2.0, "train": 6.0, "rollout": 3.0, "other": 1.0, "total": 12.0},
    )  # fmt: skip
    lines = [" ".join(line.strip("│ \n").split()) for line in printed(summary).splitlines()]
    for expected in (
        "mean reward 0.300 0.600 +0.300",
        "all satisfied 0.100 0.400 +0.300",
        "failed drafts shown as experience 4",
        "revisions that joined training 3 (43%)",
        "mean gain of a revision over its draft +0.350",
        "bonus reward paid to drafts, sum 0.75",
        "experiences skipped, too long 2",
        "train 6.0 50%",
        "total 12.0 3.0 s/step",  # the start is no part of a step
        "run.name='my [run]'-rlvr hindsight.enabled=false",
        "herl report 'runs/my [run]' one page with curves, settings and samples",
        "herl inspect 'runs/my [run]' --accepted what was revised, in the terminal",
    ):
        assert expected in lines, expected
    assert lines.index("train 6.0 50%") < lines.index("rollout 3.0 25%")  # longest first


def test_a_run_with_replays_says_how_many_were_impossible_and_is_compared_with_herl() -> None:
    history = (step(0, hindsight__replays=0, hindsight__replays_impossible=7),)
    text = printed(
        build_summary(history, before=None, after=None, seconds={"other": 0, "total": 0})
    )
    assert "failed responses replayed as successes, whole run: 0" in text
    assert "failures whose instruction cannot be reduced: 7" in text
    assert "hindsight.method=revise" in text and "hindsight.alpha=0" not in text


def test_a_run_without_numbers_prints() -> None:
    summary = build_summary((), before=None, after=None, seconds={"other": 0.0, "total": 0.0})
    text = printed(summary)
    assert "mean reward" in text
    assert "hindsight, whole run" not in text


def test_what_was_measured_otherwise_before_is_not_compared(tmp_path: Path) -> None:
    """A resumed run whose evaluation was changed has no `before`; what it has now is shown."""
    summary = build_summary(HISTORY, before=None, after=Result(0.6, 0.4), seconds={"total": 1.0})
    assert summary["reward"] == {"before": None, "after": 0.6}
    assert summary["measured_on"] == "held-out prompts"
    shown = io.StringIO()
    seconds = {"total": 1.0, "other": 1.0}
    print_summary(summary | {"seconds": seconds}, folder=tmp_path, console=Console(file=shown))
    (line,) = [line for line in shown.getvalue().splitlines() if "mean reward" in line]
    assert line.split("mean reward")[1].strip(" │").split() == ["-", "0.600", "-"]
