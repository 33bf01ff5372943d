"""Metrics on disk: one JSON line per call in `metrics.jsonl`, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from herl_megatron.types import StepMetrics


class MetricsWriter:
    """Writes numbers as they come and keeps them for the summary at the end of the run.

    Lines are flushed at once, so a killed run keeps all of its finished steps.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """Append to the folder's metrics; TensorBoard hides its points from `purge_step` on."""
        path = folder / "metrics.jsonl"
        self._history = _read(path) if path.exists() else []
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

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
        """Write one line and one TensorBoard point per value; NaN and infinity become null."""
        finite = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | finite, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._history.append(StepMetrics(step=step, values=dict(values)))

    def sync(self) -> int:
        """Bring what was written to the disk itself; returns the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close both; writing afterwards is an error."""
        self._file.close()
        self._board.close()


def _read(path: Path) -> list[StepMetrics]:
    """The lines of an earlier part of the run; null is read as NaN."""
    history = []
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        step = values.pop("step")
        numbers = {name: math.nan if v is None else v for name, v in values.items()}
        history.append(StepMetrics(step=step, values=numbers))
    return history


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
