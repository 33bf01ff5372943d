"""The paper's numbers, against a transcription of its own and the rows that they belong to."""

from __future__ import annotations

from decimal import Decimal

import pytest

from herl_megatron.reproduce.paper_numbers import paper_cells
from herl_megatron.reproduce.paper_rows import (
    ABLATION_BENCHMARKS,
    BENCHMARKS,
    MODELS,
    TASKS,
    all_rows,
    find_row,
)

TRANSCRIBED = {
    ("main", "qwen2.5_7b", "base"): "72.6 26.2 51.4 57.0 56.0 24.4",
    ("main", "qwen2.5_7b", "herl"): "82.4 39.7 83.4 59.1 65.0 34.3",
    ("main", "llama3.2_3b", "dpo"): "74.3 22.1 54.4 14.4 11.5 13.5",
    ("main", "qwen3_4b", "sft"): "83.4 31.3 66.8 81.7 73.3 36.0",
    ("ablation", "qwen2.5_7b", "naive_he"): "32.3 52.7 28.8",
    ("ablation", "llama3.2_3b", "he"): "28.1 41.1 23.5",
}
"""Typed by hand."""
SUMS = {
    "main": "1177.4 442.9 999.1 849.6 712.1 440.2",
    "ablation": "253.9 385.4 217.2",
}
"""Of each column over its 15 and 8 rows."""


@pytest.mark.parametrize("row", TRANSCRIBED, ids="/".join)
def test_rows_as_they_were_read(row: tuple[str, str, str]) -> None:
    found = [c.value for c in paper_cells() if (c.table, c.model, c.method) == row]
    assert found == [Decimal(text) for text in TRANSCRIBED[row].split()]


@pytest.mark.parametrize("table", SUMS)
def test_columns_add_up(table: str) -> None:
    columns = BENCHMARKS if table == "main" else ABLATION_BENCHMARKS
    cells = [cell for cell in paper_cells() if cell.table == table]
    assert len(cells) == {"main": 15 * 6, "ablation": 8 * 3}[table]
    sums = [sum(c.value for c in cells if c.benchmark == name) for name in columns]
    assert sums == [Decimal(text) for text in SUMS[table].split()]


def test_the_ablations_first_and_last_row_are_the_main_tables() -> None:
    main = {(c.model, c.method, c.benchmark): c.value for c in paper_cells() if c.table == "main"}
    shared = [c for c in paper_cells() if c.table == "ablation" and c.method in ("rlvr", "herl")]
    assert len(shared) == 12
    assert all(main[c.model, c.method, c.benchmark] == c.value for c in shared)


def test_every_cell_is_of_a_row_and_every_row_has_cells() -> None:
    """Rows: 3 base, 3 models x 2 tasks x (SFT, DPO, RLVR, HeRL), 2 models x 2 tasks x 2."""
    named = {row.name: row for row in all_rows()}
    assert len(named) == 3 + 3 * 2 * 4 + 2 * 2 * 2
    filled = set()
    for cell in paper_cells():
        assert cell.source and cell.model in MODELS
        (task,) = [name for name, listed in TASKS.items() if cell.benchmark in listed]
        name = f"{cell.model}/base" if cell.method == "base" else "/".join(
            (cell.model, task, cell.method)
        )  # fmt: skip
        assert cell.benchmark in named[name].benchmarks
        filled.add((name, cell.benchmark))
    assert filled == {(row.name, name) for row in named.values() for name in row.benchmarks}


def test_an_unknown_row_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match="qwen2.5_7b/if/herl or"):
        find_row("qwen2.5_7b/if/hrel")
    with pytest.raises(ValueError, match="--list"):
        find_row("qwen3_4b/if/he")  # no such cell in the paper
