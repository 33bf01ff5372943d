"""Memory that runs held beside what `herl plan` counted for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from herl_megatron.observability.peaks import TRAINER_PHASES, peak_metric
from herl_megatron.report.html import Html, table, tag, text
from herl_megatron.report.runs import ReportedRun

_GIB = 1 << 30
_WITHIN = {"log-probs": ("log-probs", "parity check")}
"""Phases of the plan that a rank's own phase contains, where they are not the same."""


def memory(runs: Sequence[ReportedRun]) -> list[Html]:
    """A table over runs with a `plan.json`; nothing without one."""
    rows = [row for run in runs if run.plan for row in _rows(run, run.plan)]
    if not rows:
        return []
    note = (
        "Most that the fullest rank or engine held over the run; the engine beside a rank is not"
        " counted in. On GPUs it is what torch has allocated, which leaves out its context (about"
        " 0.5 GiB) and what its allocator keeps."
    )
    head = ("run", "part", "measured, GiB", "plan, GiB")
    shown = [[text(value) for value in row] for row in rows]
    return [
        tag("h3", text("Memory beside the plan")),
        table(head, shown, css="settings"),
        tag("p", text(note), css="note"),
    ]


def _rows(run: ReportedRun, plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    where: Literal["host", "device"] = "device" if plan.get("gpu_bytes") else "host"
    ranks = plan.get("ranks") or []
    for phase in TRAINER_PHASES:
        counted = [
            rank["phases"][name] - rank["engine"][name]
            for rank in ranks
            for name in _WITHIN.get(phase, (phase,))
            if name in rank["phases"]
        ]
        measured = _most(run, peak_metric(where, phase))
        if measured is not None:
            yield str(run.path), f"trainer, {phase}", f"{measured:.2f}", _gib(counted)
    engine = _most(run, f"memory/engine_{where}_gib")
    if engine is not None:
        budget = (plan.get("engine") or {}).get("budget_bytes")
        yield str(run.path), "engine", f"{engine:.2f}", _gib([budget] if budget else [])


def _most(run: ReportedRun, metric: str) -> float | None:
    return max(run.metrics.get(metric, {}).values(), default=None)


def _gib(counted: Sequence[int]) -> str:
    return f"{max(counted) / _GIB:.2f}" if counted else "-"
