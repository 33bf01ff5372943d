"""Where a tool may write what it measured."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def new_file(text: str) -> Path:
    """Type of an `--out` option: a path at which nothing is, so that no tool replaces a file.

    Raises:
        argparse.ArgumentTypeError: something is there already.
    """
    path = Path(text)
    if os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{path} is there already; name another file")
    return path
