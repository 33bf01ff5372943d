"""Shared by the benchmarks of this folder: ratios of paired measurements, a table of results, JSON.

    from tools.bench._bench import Row, paired_ratio, report

A script in this folder that imports it puts the repository's root on `sys.path` first, as
`check_layouts.py` does. Measure A and B in turns (A B A B ...), at least ten pairs where it can be
afforded, and give the two sequences to `paired_ratio`: what loads the machine for a while then hits
both of a pair.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

_RESAMPLES = 10_000
_WIDTH = 110


@dataclass(frozen=True)
class Row:
    """One result as people read it. `met` is None where `goal` is empty or nothing was decided."""

    what: str
    result: str
    goal: str = ""
    met: bool | None = None


def paired_ratio(
    a: Sequence[float], b: Sequence[float], seed: int = 0
) -> tuple[float, float, float]:
    """Median of `a[i] / b[i]` and its bootstrap 95 % interval: (median, low, high).

    Raises:
        ValueError: no pair, unequal lengths, or a measurement that is not positive.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"paired_ratio needs pairs, got {len(a)} and {len(b)} measurements")
    if min(*a, *b) <= 0:
        raise ValueError(f"paired_ratio needs positive measurements, got {min(*a, *b)}")
    ratios = np.asarray(a, dtype=np.float64) / np.asarray(b, dtype=np.float64)
    return median_interval(ratios.tolist(), seed)


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Median and the percentile bootstrap's 95 % interval of it: (median, low, high)."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def interval_text(interval: tuple[float, float, float], *, unit: str = "x") -> str:
    """`1.18x [1.12, 1.25]`."""
    middle, low, high = interval
    return f"{middle:.3g}{unit} [{low:.3g}, {high:.3g}]"


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and how busy it was before."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def report(
    title: str,
    rows: Sequence[Row],
    *,
    raw: Mapping[str, Any],
    started_on: Mapping[str, Any],
    out: Path | None,
) -> None:
    """Print the rows; write them with `raw`, the single measurements, to `out` as JSON.

    `started_on` is `machine()` from before the measurements.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("result", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("")
    for row in rows:
        verdict = "" if row.met is None else "[green]met[/]" if row.met else "[bold red]missed[/]"
        table.add_row(row.what, row.result, row.goal, verdict)
    console = Console(width=_WIDTH)
    console.print(table)
    where = f"{started_on['cpus']} CPUs, load {started_on['load_1min']:.1f} before the start"
    console.print(where, highlight=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "title": title,
            "machine": dict(started_on),
            "results": [asdict(row) for row in rows],
            "raw": dict(raw),
        }
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
