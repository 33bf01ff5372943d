"""The numbers of the paper's tables, as `paper.csv` beside this file has them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Literal

PaperTable = Literal["main", "ablation"]
TITLES = {"main": "Main table", "ablation": "Ablation"}


@dataclass(frozen=True)
class PaperCell:
    """One number. value: in percent, with one decimal. source: where it was read."""

    table: PaperTable
    model: str
    method: str
    benchmark: str
    value: Decimal
    source: str


@cache
def paper_cells() -> tuple[PaperCell, ...]:
    """Every number, in the order of the tables; names are those of `paper_rows`."""
    text = files("herl_megatron.reproduce").joinpath("paper.csv").read_text(encoding="utf-8")
    return tuple(
        PaperCell(
            table=line["table"],  # type: ignore[arg-type]  # a test reads them all
            model=line["model"],
            method=line["method"],
            benchmark=line["benchmark"],
            value=Decimal(line["value"]),
            source=line["source"],
        )
        for line in csv.DictReader(text.splitlines())
    )
