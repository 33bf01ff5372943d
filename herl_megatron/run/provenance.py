"""Where a run's numbers come from: code, command, machine and dates, one entry per start.

`provenance.json` in the run's folder; the changes of a checkout that no commit holds are beside it,
in `source.diff`, and where a later start had others, in `source_2.diff` and so on.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

import herl_megatron
from herl_megatron.config.paths import aside
from herl_megatron.config.secrets import shown_file
from herl_megatron.files.run_files import PROVENANCE, source_diff
from herl_megatron.observability.versions import package_versions

logger = logging.getLogger(__name__)

_LARGEST_DIFF = 1 << 20
"""Characters; what is changed beyond is counted and left out."""
_GIT_S = 10.0
_PLAIN = ("--no-ext-diff", "--no-color")
"""A patch, whatever the user's git shows on a screen."""


def record_start(
    folder: Path, *, gpus: Mapping[str, int], nodes: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Add this start to the folder's `provenance.json`; a damaged one is kept aside, and said.

    gpus: how many of each name are here; nodes: see `record_nodes`.
    """
    try:
        earlier = _load(folder)
    except ValueError as error:
        os.rename(folder / PROVENANCE, kept := aside(folder / PROVENANCE))
        logger.warning("%s; it is kept as %s, and a new one begins with this start", error, kept)
        earlier = []
    code = _source()
    code["diff"] = _keep_diff(folder, code["diff"])
    entry = {
        "started": _now(),
        "ended": None,
        "outcome": None,
        "command": shlex.join(shown_file(argument) for argument in sys.argv),
        "working_directory": os.getcwd(),
        "host": socket.gethostname(),
        "cpu": _cpu(),
        "gpus": dict(gpus),
        "nodes": [dict(node) for node in nodes],
        "code": code,
        "versions": dict(package_versions()),
    }
    _write(folder, [*earlier, entry])


def record_nodes(folder: Path, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Complete the newest start: the nodes that it has found its processes on, where they are
    several, each with `host`, `address` and `gpus` (how many of each name).

    Raises:
        ValueError: the file is damaged.
    """
    _complete(folder, {"nodes": [dict(node) for node in nodes]})


def record_end(folder: Path, outcome: str) -> None:
    """Complete the newest start: `finished`, `interrupted`, or the error that ended it.

    Raises:
        ValueError: the file is damaged, and left as it is.
    """
    _complete(folder, {"ended": _now(), "outcome": outcome})


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Every start so far, the earliest first; none where the file is damaged or not there."""
    try:
        return _load(folder)
    except (OSError, ValueError):
        return []


def _load(folder: Path) -> list[dict[str, Any]]:
    """As `read_starts`.

    Raises:
        ValueError: the file is there and is not what this module writes.
    """
    file = folder / PROVENANCE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error})") from error
    starts = found.get("starts") if isinstance(found, dict) else None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ValueError(f"{file} is damaged (no list of starts)")
    return starts


def _complete(folder: Path, values: Mapping[str, Any]) -> None:
    starts = _load(folder)
    if starts:
        starts[-1] |= values
        _write(folder, starts)


def _keep_diff(folder: Path, diff: str) -> str | None:
    """Name of the file that holds it: that of an earlier start with the same, or a new one."""
    if not diff:
        return None
    number = 1
    while (file := folder / source_diff(number)).exists():
        if file.read_text(encoding="utf-8", errors="surrogateescape") == diff:
            return file.name
        number += 1
    _replace(file, diff)
    return file.name


def _write(folder: Path, starts: list[dict[str, Any]]) -> None:
    _replace(folder / PROVENANCE, json.dumps({"starts": starts}, indent=1, allow_nan=False) + "\n")


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(temporary, file)


def _now() -> str:
    """ISO 8601 with the machine's offset from UTC."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _cpu() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # another system than Linux: the architecture says what is known
    return {
        "model": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _source() -> dict[str, Any]:
    """Commit of the checkout that the package is imported from, and what differs from it; an
    installed wheel has none."""
    package = Path(herl_megatron.__file__).parent
    root = _git(package, "rev-parse", "--show-toplevel")
    # An environment below a foreign repository is none of that repository's code.
    tracked = root is not None and _git(package, "ls-files", "--error-unmatch", "__init__.py")
    if not tracked:
        return {"commit": None, "dirty": None, "untracked": [], "diff": ""}
    commit = _git(package, "rev-parse", "HEAD")
    diff = _git(package, "diff", *_PLAIN, "HEAD", "--", package.as_posix()) or ""
    others = _git(package, "ls-files", "--others", "--exclude-standard", "--", package.as_posix())
    untracked = (others or "").splitlines()
    if len(diff) > _LARGEST_DIFF:
        diff = f"{diff[:_LARGEST_DIFF]}\n[{len(diff) - _LARGEST_DIFF} more characters left out]\n"
    return {
        "commit": commit.strip() if commit else None,
        "dirty": bool(diff or untracked),
        "untracked": untracked,
        "diff": diff,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no repository, or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, timeout=_GIT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return done.stdout.decode("utf-8", errors="replace")
