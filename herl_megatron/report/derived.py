"""Curves that follow from what was logged: shares of counts, and satisfaction by check."""

from __future__ import annotations

from dataclasses import replace

from herl_megatron.report.rollouts import RolloutStats
from herl_megatron.report.runs import Run, Series


def with_derived(run: Run, stats: RolloutStats) -> Run:
    """The run with `derived/*` and `check/NAME` among its metrics.

    check/NAME: share of the scored training rollouts that satisfy the check, of those whose
        rubric has it.
    derived/accepted_share: revisions that joined, of those sampled; no point where there was none.
    derived/unscored_share: rollouts without a reward, of prompts_per_step * group_size.
    """
    added: dict[str, Series] = {
        f"check/{name}": {step: tally.hits / tally.total for step, tally in by_step.items()}
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
    return replace(run, metrics={**run.metrics, **added})


def _shares(run: Run, part: str, whole: str) -> dict[int, float]:
    parts, wholes = run.metrics.get(part, {}), run.metrics.get(whole, {})
    return {s: parts[s] / wholes[s] for s in parts if wholes.get(s, 0) > 0}
