"""The table: every cell of the paper, what was measured for it, and the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from herl_megatron.reproduce.measured_cells import TOY, MeasuredCell
from herl_megatron.reproduce.paper_numbers import paper_cells
from herl_megatron.reproduce.paper_rows import TASKS

Key = tuple[str, str]
"""Row and benchmark, by name."""


@dataclass(frozen=True)
class TableLine:
    """One cell. table: `main`, `ablation` or `toy`. paper: None where it has no number."""

    table: str
    model: str
    method: str
    benchmark: str
    measured: MeasuredCell | None
    paper: Decimal | None
    source: str

    @property
    def difference(self) -> Decimal | None:
        """Measured minus the paper's, in points; of the numbers as they are shown."""
        if self.measured is None or self.paper is None:
            return None
        return self.measured.value - self.paper


@dataclass(frozen=True)
class PaperComparison:
    """The lines in the paper's order. left_out: what was measured and has no cell, in words."""

    lines: tuple[TableLine, ...]
    left_out: tuple[str, ...]


def compare(cells: Sequence[MeasuredCell]) -> PaperComparison:
    """Put what was measured beside the paper. A cell that nobody measured stays empty.

    Raises:
        ValueError: cells of different scales or presets, two for one cell, or a column whose rows
            were evaluated in different ways; with both runs and what differs.
    """
    _require_one_kind(cells)
    by_key = _by_key(cells)
    _require_one_sampling(cells)
    if cells and cells[0].source.scale == TOY:
        return PaperComparison(tuple(_toy_lines(cells)), ())
    lines = tuple(_paper_lines(by_key))
    used = {id(line.measured) for line in lines}
    left = [cell for cell in cells if id(cell) not in used]
    return PaperComparison(
        lines, tuple(f"{cell.source.row.name} on {cell.benchmark}" for cell in left)
    )


def _paper_lines(measured: Mapping[Key, MeasuredCell]) -> Iterator[TableLine]:
    for cell in paper_cells():
        (task,) = [name for name, benchmarks in TASKS.items() if cell.benchmark in benchmarks]
        parts = (cell.model, cell.method) if cell.method == "base" else (
            cell.model, task, cell.method
        )  # fmt: skip
        found = measured.get(("/".join(parts), cell.benchmark))
        yield TableLine(
            cell.table, cell.model, cell.method, cell.benchmark, found, cell.value, cell.source
        )


def _toy_lines(cells: Sequence[MeasuredCell]) -> Iterator[TableLine]:
    for cell in cells:
        row = cell.source.row
        method = f"{row.task} {row.method}".strip()
        yield TableLine(TOY, row.model, method, TOY, cell, None, "")


def _require_one_kind(cells: Sequence[MeasuredCell]) -> None:
    for what in ("scale", "preset"):
        kinds: dict[str, MeasuredCell] = {}
        for cell in cells:
            if kind := str(getattr(cell.source, what)):
                kinds.setdefault(kind, cell)
        if len(kinds) > 1:
            said = " and ".join(f"{kind} ({c.source.run.path})" for kind, c in kinds.items())
            raise ValueError(f"runs of different kinds, {what} {said}: make a table of each")


def _by_key(cells: Sequence[MeasuredCell]) -> dict[Key, MeasuredCell]:
    found: dict[Key, MeasuredCell] = {}
    for cell in cells:
        key = (cell.source.row.name, cell.benchmark)
        if key in found:
            raise ValueError(
                f"two runs for one cell, {key[0]} on {key[1]}: {found[key].source.run.path} and"
                f" {cell.source.run.path}; leave one out"
            )
        found[key] = cell
    return found


def _require_one_sampling(cells: Sequence[MeasuredCell]) -> None:
    """The rows of a column are compared with one another, so they are evaluated in one way."""
    first: dict[str, MeasuredCell] = {}
    for cell in cells:
        other = first.setdefault(cell.benchmark, cell)
        then, now = (
            {**one.sampling, "the number of prompts": one.prompts} for one in (other, cell)
        )
        differing = [key for key in now if now[key] != then.get(key)]
        if differing:
            said = "; ".join(f"{key} {then.get(key)!r} and {now[key]!r}" for key in differing)
            raise ValueError(
                f"{cell.benchmark} was evaluated in different ways: {said} ({other.source.run.path}"
                f" and {cell.source.run.path}); evaluate them alike, or leave one out"
            )
