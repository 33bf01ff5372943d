"""The trackers' own names of a run, kept in its folder so that a resumed run goes on under them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from herl_megatron.files.run_files import TRACKERS

_writing = threading.Lock()
"""Every tracker opens in a thread of its own, and all keep their ids in one file."""


def read_ids(folder: Path) -> dict[str, str]:
    """By tracker; empty where none was written or the file is damaged, which costs a new id."""
    try:
        found = json.loads((folder / TRACKERS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def write_id(folder: Path, name: str, value: str) -> None:
    """Keep one more; the file appears whole or not at all."""
    with _writing:
        ids = read_ids(folder) | {name: value}
        temporary = folder / f"{TRACKERS}.tmp"
        temporary.write_text(json.dumps(ids, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / TRACKERS)
