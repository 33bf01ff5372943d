"""Curves that follow from what was logged: shares of counts, and satisfaction by check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, isfinite, nan

from herl_megatron.report.rollouts import RolloutStats, Tally
from herl_megatron.report.runs import ReportedRun, Series

_WINDOWS = 12
_AXES = (
    ("axis/hours", ("time/total_s",), 3600.0),
    ("axis/tokens", ("rollout/tokens", "rollout/revision_tokens"), 1.0),
)
"""Name, metrics whose sum it is, and how much of it makes one."""


def with_derived(run: ReportedRun, stats: RolloutStats) -> ReportedRun:
    """The run with `derived/*` and `check/NAME` among its metrics.

    check/NAME: share of the scored training rollouts that satisfy the check, of those whose
        rubric has it; pooled over twelfths of the planned steps, since a step asks for few.
    derived/accepted_share: revisions that joined, of those sampled; no point where there was none.
    derived/unscored_share: rollouts without a reward, of prompts_per_step * group_size.
    axis/hours, axis/tokens: time in the steps before this one, and what was sampled in them; with
        one more at the end, for what is measured after the last step.
    train/revision_ratio_mean: has no value in a step that trained on no revision.
    """
    added: dict[str, Series] = {
        f"check/{name}": pooled(by_step, window=ceil(max(run.planned_steps, 1) / _WINDOWS))
        for name, by_step in stats.satisfied.items()
    }
    if accepted := _shares(run, "hindsight/accepted", "hindsight/revisions"):
        added["derived/accepted_share"] = accepted
    per_step = run.settings.get("train.prompts_per_step", 0) * run.settings.get(
        "rollout.group_size", 0
    )
    unscored = run.metrics.get("scoring/unscored")
    if unscored and per_step:
        added["derived/unscored_share"] = {s: value / per_step for s, value in unscored.items()}
    tokens = run.metrics.get("train/revision_tokens", {})
    if ratio := run.metrics.get("train/revision_ratio_mean"):
        added["train/revision_ratio_mean"] = {
            s: value if tokens.get(s, 1) else nan for s, value in ratio.items()
        }
    for name, parts, unit in _AXES:
        if sums := _sums_before(run, parts, unit):
            added[name] = sums
    return replace(run, metrics={**run.metrics, **added})


def pooled(by_step: Mapping[int, Tally], *, window: int) -> dict[int, float]:
    """Share of hits over windows of steps `0..window-1, window..2*window-1, ...`, each at its
    middle step; a window without a tally has no point."""
    whole: dict[int, Tally] = {}
    for step, tally in by_step.items():
        total = whole.setdefault(step // window, Tally())
        total.hits += tally.hits
        total.total += tally.total
    middle = (window - 1) // 2
    return {i * window + middle: whole[i].hits / whole[i].total for i in sorted(whole)}


def _sums_before(run: ReportedRun, parts: Sequence[str], unit: float) -> dict[int, float]:
    """By step, the sum of `parts` over the steps before; empty where a step has no number."""
    first = run.metrics.get(parts[0], {})
    steps = sorted(first)
    if steps != list(range(len(steps))) or not steps:
        return {}
    sums = {0: 0.0}
    for step in steps:
        here = sum(run.metrics.get(name, {}).get(step, 0.0) for name in parts)
        sums[step + 1] = sums[step] + here / unit
    return sums if isfinite(sums[len(steps)]) and sums[len(steps)] > 0 else {}


def _shares(run: ReportedRun, part: str, whole: str) -> dict[int, float]:
    parts, wholes = run.metrics.get(part, {}), run.metrics.get(whole, {})
    return {s: parts[s] / wholes[s] for s in parts if wholes.get(s, 0) > 0}
