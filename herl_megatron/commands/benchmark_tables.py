"""Tables of the benchmarks' own metrics, and what `herl score` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table

from herl_megatron.benchmarks.known_benchmarks import BENCHMARKS
from herl_megatron.commands.score.totals import top_reasons
from herl_megatron.commands.tables import score_table

if TYPE_CHECKING:
    from herl_megatron.commands.results import ScoreResult

_COLUMNS = ("", "metric", "%", "95 %", "prompts", "responses", "unscored")


def benchmark_tables(numbers: Mapping[str, Mapping[str, Any]]) -> Group:
    """One row for each metric, in percent, the headline first; then what keeps numbers from
    comparing with published ones.

    numbers: `BenchmarkNumbers.as_json` by the benchmark's name. Parts (domains, difficulties) are
    in the files alone.
    """
    table = Table(title="\nbenchmarks", title_justify="left", box=None)
    for number, text in enumerate(_COLUMNS):
        justify: JustifyMethod = "right" if number > 1 else "left"
        table.add_column(text, justify=justify, overflow="fold")  # no number is ever cut
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


def print_scores(result: ScoreResult, console: Console) -> None:
    """What `herl score` says at its end: totals, benchmarks, reasons, where the files are."""
    console.print(score_table(result.totals, width=console.width))
    if numbers := result.totals.get("benchmarks"):
        console.print(benchmark_tables(numbers))
    for reason in top_reasons(result.totals, 5):
        console.print(escape(reason), highlight=False, soft_wrap=True)
    written = f"verdicts: {result.verdicts}\ntotals: {result.summary}"
    console.print(written, highlight=False, soft_wrap=True)
