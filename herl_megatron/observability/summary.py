"""What a run came to: `summary.json`, and the same as a table for people."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from herl_megatron.types import StepMetrics

HELD_OUT = "held-out prompts"
"""`measured_on` of a summary whose numbers are of an evaluation."""
_OUTSIDE_STEPS = ("start", "evaluate", "export")


class Evaluated(Protocol):
    """The two headline numbers of an evaluation."""

    @property
    def reward(self) -> float:
        """Mean reward."""
        ...

    @property
    def all_satisfied(self) -> float:
        """Share of responses that meet their whole rubric."""
        ...


@dataclass(frozen=True)
class Headline:
    """An `Evaluated` that is read back from a checkpoint."""

    reward: float
    all_satisfied: float


def build_summary(
    history: Sequence[StepMetrics],
    *,
    before: Evaluated | None,
    after: Evaluated | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The run in one JSON-ready mapping.

    reward, all_satisfied: `before` and `after`, on held-out prompts; `before` is null where the
        evaluation was changed since, in a resumed run. Without an evaluation they are those of the
        first and last step's own rollouts (`measured_on` says which), null for a run of no steps.
    scoring: what could not be scored and what failed on the way, counts over the run.
    steps_without_spread: in which no group's rewards differed, so that nothing was learnt.
    engine_restarts: over the run, evaluations included.
    hindsight: counts over the run; `gain` is the mean of revision minus draft reward over the
        scored revisions, null if there were none.
    """
    steps = [item.values for item in history if "hindsight/experiences" in item.values]
    if after is not None:
        reward = _pair(before.reward if before else None, after.reward)
        all_satisfied = _pair(before.all_satisfied if before else None, after.all_satisfied)
        measured_on = HELD_OUT
    else:
        reward = _first_and_last(steps, "reward/mean")
        all_satisfied = _first_and_last(steps, "reward/all_satisfied")
        measured_on = "training rollouts"
    return {
        "reward": reward,
        "all_satisfied": all_satisfied,
        "measured_on": measured_on,
        "steps": len(steps),
        "steps_without_spread": int(sum(step.get("train/no_spread", 0.0) for step in steps)),
        "hindsight": _hindsight(steps),
        "scoring": _scoring(steps),
        "engine_restarts": _engine_restarts(history),
        "seconds": _rounded(seconds),
    }


def tuning_summary(
    history: Sequence[StepMetrics],
    name: str,
    *,
    before: Evaluated | None,
    after: Evaluated | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """A run of `herl NAME` (`sft`, `dpo`) in one JSON-ready mapping.

    first, last: the numbers of the first and the last step, each measured before it learnt; one
        that was not finite is left out.
    reward, all_satisfied: `before` and `after`, as in `build_summary`; null where nothing was
        evaluated, and `measured_on` is null then.
    """
    steps = [
        {
            key.removeprefix(f"{name}/"): value
            for key, value in item.values.items()
            if key.startswith(f"{name}/") and math.isfinite(value)
        }
        for item in history
        if f"{name}/loss" in item.values
    ]
    return {
        "command": name,
        "steps": len(steps),
        "first": steps[0],
        "last": steps[-1],
        "reward": _pair(*(one.reward if one else None for one in (before, after))),
        "all_satisfied": _pair(*(one.all_satisfied if one else None for one in (before, after))),
        "measured_on": HELD_OUT if after is not None else None,
        "engine_restarts": _engine_restarts(history),
        "seconds": _rounded(seconds),
    }


def print_summary(summary: Mapping[str, Any], *, folder: Path, console: Console) -> None:
    """Print the tables, where things lie, and what to try next."""
    hindsight, seconds = summary["hindsight"], summary["seconds"]
    parts: list[RenderableType] = [headline_table(summary)]
    if hindsight["experiences"]:
        parts.append(_hindsight_table(hindsight))
    replayed, impossible = hindsight["replays"], hindsight["replays_impossible"]
    if replayed or impossible:
        parts.append(f"\nfailed responses replayed as successes, whole run: {replayed:.0f}")
    if impossible:
        parts.append(f"[yellow]failures whose instruction cannot be reduced: {impossible:.0f}[/]")
    if any(summary["scoring"].values()):
        parts.append(_scoring_table(summary["scoring"]))
    if idle := summary["steps_without_spread"]:
        parts.append(f"\n[yellow]steps that taught nothing, all rewards equal: {idle}[/]")
    if summary["engine_restarts"]:
        parts.append(
            f"\n[yellow]engines started anew: {summary['engine_restarts']}, see run.log[/]"
        )
    parts.append(_time_table(seconds, steps=summary["steps"]))
    console.print()
    console.print(Panel(Group(*parts), title=f"{folder.name}: {summary['steps']} steps"))
    console.print(_next_steps(folder, replayed=bool(replayed or impossible)), highlight=False)


def _first_and_last(steps: Sequence[Mapping[str, float]], name: str) -> dict[str, float | None]:
    """Of the first and the last step that logged this metric."""
    values = [step[name] for step in steps if name in step]
    return _pair(values[0], values[-1]) if values else _pair(None, None)


def _pair(before: float | None, after: float | None) -> dict[str, float | None]:
    return {"before": before, "after": after}


def _scoring(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add up `scoring/*` over the steps; all zero in a run without trouble."""
    names = sorted({name for step in steps for name in step if name.startswith("scoring/")})
    return {
        name.removeprefix("scoring/"): sum(step.get(name, 0.0) for step in steps) for name in names
    }


def _hindsight(steps: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Add up `hindsight/*` over the steps; the gain is weighted by each step's scored revisions."""
    names = ("experiences", "experiences_too_long", "revisions", "accepted", "bonus_sum")
    totals: dict[str, float | None] = {
        name: sum(step[f"hindsight/{name}"] for step in steps) for name in names
    }
    for name in ("replays", "replays_impossible"):
        # A run that was begun by an earlier version has steps without these.
        totals[name] = sum(step.get(f"hindsight/{name}", 0.0) for step in steps)
    gained = scored = 0.0
    for step in steps:
        if "hindsight/gain" in step:  # left out by a step without a scored revision
            count = step["hindsight/revisions"] - step["scoring/revisions_unscored"]
            gained += count * step["hindsight/gain"]
            scored += count
    return totals | {"gain": gained / scored if scored else None}


def _engine_restarts(history: Sequence[StepMetrics]) -> int:
    return int(sum(item.values.get("rollout/engine_restarts", 0) for item in history))


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(value, 3) for phase, value in seconds.items()}


def headline_table(summary: Mapping[str, Any]) -> Table:
    """Mean reward and share of satisfied rubrics, before and after."""
    table = Table(title=f"on {summary['measured_on']}", title_justify="left", box=None)
    for title in ("", "before", "after", "change"):
        table.add_column(title, justify="right" if title else "left")
    for key, title in (("reward", "mean reward"), ("all_satisfied", "all satisfied")):
        before, after = summary[key]["before"], summary[key]["after"]
        if before is None or after is None:
            shown = ["-" if value is None else f"{value:.3f}" for value in (before, after)]
            table.add_row(title, *shown, "-")
            continue
        colour = "green" if after > before else "red" if after < before else "default"
        change = f"[bold {colour}]{after - before:+.3f}[/]"
        table.add_row(title, f"{before:.3f}", f"[bold]{after:.3f}[/]", change)
    return table


def _scoring_table(scoring: Mapping[str, float]) -> Table:
    """Only what happened: an unscored response is masked, never given a number."""
    table = Table(title="\n[yellow]scoring trouble, whole run[/]", title_justify="left", box=None)
    table.add_column()
    table.add_column(justify="right")
    for name, count in scoring.items():
        if count:
            table.add_row(f"[yellow]{name.replace('_', ' ')}[/]", f"{count:.0f}")
    return table


def _hindsight_table(hindsight: Mapping[str, Any]) -> Table:
    table = Table(title="\nhindsight, whole run", title_justify="left", box=None)
    table.add_column()
    table.add_column(justify="right")
    revisions = hindsight["revisions"]
    share = f" ({hindsight['accepted'] / revisions:.0%})" if revisions else ""
    gain = "-" if hindsight["gain"] is None else f"{hindsight['gain']:+.3f}"
    table.add_row("failed drafts shown as experience", f"{hindsight['experiences']:.0f}")
    table.add_row("revisions sampled", f"{revisions:.0f}")
    table.add_row("revisions that joined training", f"{hindsight['accepted']:.0f}{share}")
    table.add_row("mean gain of a revision over its draft", gain)
    table.add_row("bonus reward paid to drafts, sum", f"{hindsight['bonus_sum']:.2f}")
    if hindsight["experiences_too_long"]:
        too_long = f"{hindsight['experiences_too_long']:.0f}"
        table.add_row("[yellow]experiences skipped, too long[/]", too_long)
    return table


def _time_table(seconds: Mapping[str, float], *, steps: int) -> Table:
    table = Table(title="\ntime", title_justify="left", box=None)
    for title in ("", "seconds", "share"):
        table.add_column(title, justify="right" if title else "left")
    total = seconds["total"]
    phases = sorted((s, p) for p, s in seconds.items() if p not in ("total", "other"))
    for value, phase in [*reversed(phases), (seconds["other"], "other")]:
        table.add_row(phase, f"{value:.1f}", f"{value / total:.0%}" if total else "-")
    in_steps = sum(value for value, phase in phases if phase not in _OUTSIDE_STEPS)
    per_step = f"{in_steps / steps:.1f} s/step" if steps else ""
    table.add_row("[bold]total[/]", f"[bold]{total:.1f}[/]", per_step)
    return table


def _next_steps(folder: Path, *, replayed: bool) -> Panel:
    other = ("HeRL without the bonus", "-no-bonus hindsight.alpha=0")
    if replayed:
        other = ("HeRL", "-herl hindsight.method=revise \\\n    hindsight.off_policy_loss=shaped")
    again = f"herl train {shlex.quote(str(folder / 'config.yaml'))} \\\n    "
    run = shlex.quote(str(folder))
    name = f"run.name={shlex.quote(folder.name)}"
    lines = (
        "[bold]in a shell with the environment[/]",
        f"  source {shlex.quote(str(Path(sys.prefix) / 'bin' / 'activate'))}",
        "[bold]look at the curve, and at drafts, verdicts and revisions[/]",
        f"  herl report {run}    one page with curves, settings and samples",
        f"  herl inspect {run} --accepted    what was revised, in the terminal",
        f"  tensorboard --logdir {shlex.quote(str(folder.parent))}",
        f"[bold]compare with plain RLVR, and with {other[0]}[/]",
        f"  {again}{name}-rlvr hindsight.enabled=false",
        f"  {again}{name}{other[1]}",
        "[bold]use the policy, a Hugging Face folder[/]",
        f"  {folder / 'policy'}",
    )
    return Panel("\n".join(escape(line) if line[0] == " " else line for line in lines),
                 title="what to try next")  # fmt: skip
