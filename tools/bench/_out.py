"""Where a tool may write what it measured, and how runs' lines are read again."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def new_file(text: str) -> Path:
    """Type of an `--out` option: a path at which nothing is, so that no tool replaces a file.

    Raises:
        argparse.ArgumentTypeError: something is there already.
    """
    path = Path(text)
    if os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{path} is there already; name another file")
    return path


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one for each line that is not empty.

    Only a newline ends a line: responses hold whatever else `str.splitlines` would cut at (U+2028,
    form feeds), which JSON leaves as it is.
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)
