"""`herl report`: curves of runs or, with `--table`, evaluations beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def make_report(
    runs: Sequence[Path], *, out: Path | None, samples: int, table: bool, rows: Sequence[str]
) -> Path:
    """Write what was asked for; returns the page. rows: `NAME=RUN`, for a table.

    Raises:
        ValueError: no run is named, one cannot be reported, or `--row` without `--table`.
    """
    if not runs and not rows:
        raise ValueError("no run is named; give the folders of one or more")
    if not table:
        if rows:
            raise ValueError(f"--row {rows[0]} is for --table alone; give both, or neither")
        from herl_megatron.report.write import write_report

        return write_report(runs, out=out, samples=samples)
    from herl_megatron.reproduce.table_files import write_table

    return write_table(runs, named=_named(rows), out=out)


def _named(rows: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in rows:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise ValueError(
                f"--row: {text!r} must read NAME=RUN, such as qwen2.5_7b/if/herl=runs/x"
            )
        if name in found:
            raise ValueError(f"--row: {name} is given twice, {found[name]} and {place}")
        found[name] = Path(place)
    return found
