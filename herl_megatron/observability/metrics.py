"""Metrics on disk: one JSON line per call in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from herl_megatron.types import StepMetrics


def is_measured(name: str) -> bool:
    """Whether a metric is a time, a rate or a size in memory, which two runs that compute the same
    do not share."""
    return name.endswith(("_s", "_gib")) or name.startswith(("perf/", "engine/"))


class MetricsWriter:
    """Writes numbers as they come and keeps them for the summary at the end of the run.

    Lines are flushed at once, so a killed run keeps all of its finished steps.
    """

    def __init__(self, folder: Path) -> None:
        """Append to the folder's metrics."""
        path = folder / "metrics.jsonl"
        self._history = read_metrics(path) if path.exists() else []
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def history(self) -> tuple[StepMetrics, ...]:
        """Everything written so far, in order."""
        return tuple(self._history)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line; NaN and infinity become null."""
        finite = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | finite, allow_nan=False) + "\n")
        self._file.flush()
        self._history.append(StepMetrics(step=step, values=dict(values)))

    def sync(self) -> int:
        """Bring what was written to the disk itself; returns the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file; writing afterwards is an error."""
        self._file.close()


def read_metrics(path: Path, *, length: int | None = None) -> list[StepMetrics]:
    """The lines of an earlier part of the run, the first `length` bytes of them; null is NaN.

    Raises:
        ValueError: the file is shorter, or a line is not what `MetricsWriter` writes; says where.
    """
    fix = "restore the file, or give the new run another run.name"
    try:
        content = path.read_bytes() if os.path.lexists(path) else b""
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {fix}") from error
    if length is not None and len(content) < length:
        raise ValueError(
            f"{path} has {len(content)} bytes, but its checkpoint was made at {length}; {fix}"
        )
    history = []
    for number, line in enumerate(content[:length].splitlines(keepends=True), start=1):
        try:
            history.append(_parsed(line))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: no line of metrics ({error}); {fix}") from error
    return history


def _parsed(line: bytes) -> StepMetrics:
    if not line.endswith(b"\n") or line.endswith(b"\r\n"):
        raise ValueError("it does not end as it was written")
    values = json.loads(line.decode(), parse_constant=_refuse, object_pairs_hook=_without_repeats)
    step = values.pop("step", None) if isinstance(values, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError("it is no object with a step")
    if odd := [name for name, v in values.items() if not isinstance(v, int | float | None)]:
        raise ValueError(f"{odd[0]} is no number")
    numbers = {name: math.nan if v is None else float(v) for name, v in values.items()}
    return StepMetrics(step=step, values=numbers)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
