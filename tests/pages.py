"""The documentation's pages and their code blocks, for the tests that hold them true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "herl_megatron"
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "slurm/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: the language and what else stands behind the fence, and its text."""

    page: str
    language: str
    name: str
    text: str


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def blocks(*languages: str) -> Iterator[Block]:
    """Every block of all pages; of some languages, if any are named."""
    for page in PAGES:
        for info, text in _FENCE.findall(read(page)):
            language, _, name = info.partition(" ")
            if not languages or language in languages:
                yield Block(page.relative_to(ROOT).as_posix(), language, name, text)
