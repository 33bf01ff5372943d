"""The report's numbers: before and after per run, and check by check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from herl_megatron.report.rollouts import RolloutStats, Tally
from herl_megatron.report.runs import ReportedRun, RunGroup

Pair = tuple[float, float]
_KEYS = (
    ("eval/reward", "eval/all_satisfied", "held-out prompts"),
    ("reward/mean", "reward/all_satisfied", "training rollouts"),
    ("improve/reward", "improve/all_satisfied", "held-out prompts, best by round"),
)


@dataclass(frozen=True)
class BeforeAfter:
    """A run's first and last numbers.

    measured_on: `held-out prompts`, or `training rollouts` where nothing was evaluated.
    first_step, last_step: updates made when the numbers were taken; rounds of `herl improve`.
    reward, all_satisfied: (before, after); None if it was never logged.
    """

    measured_on: str
    first_step: int
    last_step: int
    reward: Pair | None
    all_satisfied: Pair | None


@dataclass(frozen=True)
class CheckLine:
    """One check over a group's runs.

    before, after: mean over the runs of the held-out share, None without evaluation.
    drafts: training rollouts that satisfy it, all steps and runs.
    mended: revisions that satisfy it, of those whose draft did not.
    """

    name: str
    before: float | None
    after: float | None
    drafts: Tally
    mended: Tally


def before_after(run: ReportedRun) -> BeforeAfter | None:
    """First and last held-out numbers, else those of the first and last step's own rollouts, or of
    `herl improve`'s first and last round."""
    for reward, satisfied, where in _KEYS:
        steps = [s for s, value in sorted(run.metrics.get(reward, {}).items()) if isfinite(value)]
        if steps:
            ends = (steps[0], steps[-1])
            return BeforeAfter(where, *ends, _ends(run, reward, ends), _ends(run, satisfied, ends))
    return None


def check_lines(group: RunGroup, stats: Sequence[RolloutStats]) -> list[CheckLine]:
    """The group's checks by name; `stats` are its runs', in order."""
    prefix = "eval/check/"
    names = {n.removeprefix(prefix) for run in group.runs for n in run.metrics if prefix in n}
    names |= {name for one in stats for name in (*one.satisfied, *one.mended)}
    lines = []
    for name in sorted(names):
        ends = [_first_last(run, f"{prefix}{name}") for run in group.runs]
        known = [pair for pair in ends if pair is not None]
        complete = len(known) == len(group.runs)
        drafts = [tally for one in stats for tally in one.satisfied.get(name, {}).values()]
        lines.append(
            CheckLine(
                name=name,
                before=sum(pair[0] for pair in known) / len(known) if complete else None,
                after=sum(pair[1] for pair in known) / len(known) if complete else None,
                drafts=_added(drafts),
                mended=_added([one.mended[name] for one in stats if name in one.mended]),
            )
        )
    return lines


def _ends(run: ReportedRun, name: str, steps: tuple[int, int]) -> Pair | None:
    series = run.metrics.get(name, {})
    if not all(step in series for step in steps):
        return None
    return series[steps[0]], series[steps[1]]


def _first_last(run: ReportedRun, name: str) -> Pair | None:
    values = [value for _, value in sorted(run.metrics.get(name, {}).items()) if isfinite(value)]
    return (values[0], values[-1]) if values else None


def _added(tallies: Sequence[Tally]) -> Tally:
    return Tally(sum(t.hits for t in tallies), sum(t.total for t in tallies))
