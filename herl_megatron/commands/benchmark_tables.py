"""The benchmarks' own metrics as a table, for `herl eval` and `herl score`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from herl_megatron.benchmarks.known_benchmarks import BENCHMARKS

_COLUMNS = ("", "metric", "%", "95 %", "prompts", "responses", "unscored")


def benchmark_tables(numbers: Mapping[str, Mapping[str, Any]]) -> Group:
    """One row for each metric, in percent, the headline first; then what keeps numbers from
    comparing with published ones.

    numbers: `BenchmarkNumbers.as_json` by the benchmark's name. Parts (domains, difficulties) are
    in the files alone.
    """
    table = Table(title="\nbenchmarks", title_justify="left", box=None)
    for number, text in enumerate(_COLUMNS):
        table.add_column(text, justify="right" if number > 1 else "left")
    notes: list[RenderableType] = []
    for name, one in numbers.items():
        for row in _rows(BENCHMARKS[name].title, one):
            table.add_row(*row)
        notes += [f"[yellow]{escape(f'{BENCHMARKS[name].title}: {n}')}[/]" for n in one["notes"]]
    return Group(table, *notes)


def _rows(title: str, one: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The headline's, with the counts; then the other metrics'."""
    headline, metrics = one["headline"], one["metrics"]
    low, high = (f"{100 * x:.1f}" for x in one["interval"].get(headline, (0, 0)))
    known = headline in metrics
    value = f"[bold]{100 * metrics[headline]:.1f}[/]" if known else "-"
    counts = (str(one[name]) for name in ("prompts", "responses", "unscored"))
    yield (title, headline, value, f"{low} to {high}" if known else "", *counts)
    for name, other in metrics.items():
        if name != headline:
            yield ("", name, f"{100 * other:.1f}")
