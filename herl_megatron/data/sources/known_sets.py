"""A known part of a data set, told by hashes of its prompts, which is all that is kept of it.

A hash is the first `DIGITS` hexadecimal digits of `common.prompt_key`: of 5,000 foreign prompts and
500 known ones, two agree by chance once in 400,000 preparations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from herl_megatron.data.sources.splits import EVAL, Placed

DIGITS = 10


@dataclass(frozen=True)
class KnownSet:
    """source: what rows are named that are the whole set; title: for people."""

    source: str
    title: str
    hashes: frozenset[str]

    def has(self, row: Placed) -> bool:
        """Whether the row's prompt is one of the set's."""
        return row.key[:DIGITS] in self.hashes

    def found(self, rows: Sequence[Placed]) -> int:
        """How many of the set's prompts are among the held-out rows."""
        return len({row.key[:DIGITS] for row in rows if row.output == EVAL} & self.hashes)

    def named(self, rows: Sequence[Placed]) -> list[Placed]:
        """The rows, with the held-out ones under the set's name where they are just the set."""
        held_out = [row for row in rows if row.output == EVAL]
        if self.found(rows) < len(self.hashes) or not all(map(self.has, held_out)):
            return list(rows)
        return [self._renamed(row) if row.output == EVAL else row for row in rows]

    def _renamed(self, row: Placed) -> Placed:
        prompt = replace(row.converted.prompt, source=self.source)
        return replace(row, converted=replace(row.converted, prompt=prompt))
