"""The table as files: table.md, table.csv, and a page with it and where each number is from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from herl_megatron.report.html import Html, table, tag, text
from herl_megatron.report.origins import origins
from herl_megatron.report.page import document
from herl_megatron.report.write import PAGE, require_replaceable
from herl_megatron.reproduce.beside_paper import PaperComparison, TableLine, compare
from herl_megatron.reproduce.measured_cells import TOY, cells_of, find_runs
from herl_megatron.reproduce.paper_numbers import TITLES
from herl_megatron.reproduce.paper_rows import BENCHMARKS, METHODS, MODELS

_HEAD = ("method", "benchmark", "measured", "95 % interval", "n", "paper", "difference")
_CSV = (
    "table", "model", "method", "benchmark", "measured", "low", "high", "prompts", "responses",
    "unscored", "paper", "difference", "run", "source", "notes",
)  # fmt: skip
_NOTE = (
    "In percent. n: prompts. Unscored responses are in no number. An empty cell was not measured."
    " The paper's numbers: HeRL project page (sikelifei/HeRL README)."
)
_MARK = "(*)"
"""Behind the number of prompts of a cell that notes below the table are about."""
_TOY_NOTE = (
    "The toy's rows, of a small model on a CPU: they show that the chain works and say nothing"
    " about the paper's models. In percent: responses that meet their whole rubric."
)


def write_table(
    folders: Sequence[Path], *, named: Mapping[str, Path], out: Path | None = None
) -> Path:
    """Write `table.md`, `table.csv` and `report.html` into `out` (default `report/` here); returns
    the page.

    Raises:
        ValueError: as `find_runs`, `cells_of` and `compare`, or a file in `out` is of somebody
            else. Nothing was written.
    """
    runs = find_runs(folders, named)
    made = compare([cell for run in runs for cell in cells_of(run)])
    out = out or Path("report")
    require_replaceable(out, ["table.md", "table.csv"])
    out.mkdir(parents=True, exist_ok=True)
    body = [*_html(made), *origins([run.run for run in runs])]
    # The page first: it says that the others are herl's.
    (out / PAGE).write_text(document("the paper's table", body), encoding="utf-8")
    (out / "table.md").write_text(markdown(made), encoding="utf-8")
    (out / "table.csv").write_text(comma_separated(made), encoding="utf-8")
    return out / PAGE


def markdown(made: PaperComparison) -> str:
    """The table as Markdown, a part for each table and model."""
    parts = []
    for title, lines in _sections(made):
        rows = [_HEAD, *(_cells(line) for line in lines)]
        shown = [f"| {' | '.join(row)} |" for row in rows]
        rule = f"|{'---|' * 2}{'---:|' * (len(_HEAD) - 2)}"
        parts.append("\n".join([f"## {title}", "", shown[0], rule, *shown[1:], ""]))
    return "\n".join([*parts, *_notes(made), ""])


def comma_separated(made: PaperComparison) -> str:
    """The table as CSV, a line for each cell; numbers in percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV)
    for line in made.lines:
        cell = line.measured
        numbers: list[object] = [""] * 6 if cell is None else [
            cell.value, cell.low, cell.high, cell.prompts, cell.responses, cell.unscored
        ]  # fmt: skip
        run = "" if cell is None else cell.source.run.path
        names = [line.table, line.model, line.method, line.benchmark]
        notes = "" if cell is None else "; ".join(cell.notes)
        writer.writerow([*names, *numbers, line.paper, line.difference, run, line.source, notes])
    return file.getvalue()


def _html(made: PaperComparison) -> list[Html]:
    parts = [tag("h1", text("Beside the paper"))]
    parts += [tag("p", text(note), css="note") for note in _notes(made)]
    for title, lines in _sections(made):
        rows = [[text(cell) for cell in _cells(line)] for line in lines]
        parts += [tag("h2", text(title)), table(_HEAD, rows)]
    return parts


def _notes(made: PaperComparison) -> list[str]:
    toy = any(line.table == TOY for line in made.lines)
    notes = [_TOY_NOTE if toy else _NOTE]
    if made.left_out:
        notes.append(f"Measured, but in none of the paper's cells: {', '.join(made.left_out)}.")
    cells = {id(line.measured): line.measured for line in made.lines}  # a cell may be in two tables
    for cell in cells.values():
        if cell is not None and cell.notes:
            what = f"{cell.source.row.name} on {BENCHMARKS.get(cell.benchmark, cell.benchmark)}"
            notes.append(f"{_MARK} {what}: {'; '.join(cell.notes)}.")
    return notes


def _sections(made: PaperComparison) -> Iterator[tuple[str, list[TableLine]]]:
    for (name, model), lines in groupby(made.lines, key=lambda line: (line.table, line.model)):
        of = "Toy model in the place of " if name == TOY else f"{TITLES[name]}: "
        yield f"{of}{MODELS[model]}", list(lines)


def _cells(line: TableLine) -> list[str]:
    method = METHODS.get(line.method, line.method)
    names = [method, BENCHMARKS.get(line.benchmark, line.benchmark)]
    cell, paper = line.measured, _number(line.paper)
    if cell is None:
        return [*names, "", "", "", paper, ""]
    interval = "" if cell.low is None else f"{cell.low} to {cell.high}"
    count = f"{cell.prompts}" + (f" ({cell.unscored} unscored)" if cell.unscored else "")
    count += f" {_MARK}" if cell.notes else ""
    change = "" if line.difference is None else f"{line.difference:+}"
    return [*names, str(cell.value), interval, count, paper, change]


def _number(value: Decimal | None) -> str:
    return "" if value is None else str(value)
