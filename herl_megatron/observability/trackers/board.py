"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter

from herl_megatron.observability.trackers.protocol import SamplesOf, TextSample, TrackedRun
from herl_megatron.types import StepMetrics


class TensorBoard:
    """A `Tracker`. Points from `purge_step` on, of an earlier start, are hidden; those that the run
    keeps, `again`, are written once more."""

    def __init__(
        self, run: TrackedRun, *, purge_step: int | None, again: Sequence[StepMetrics] = ()
    ) -> None:
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge_step)
        config = json.dumps(run.config, indent=2, allow_nan=False)
        quoted = "\n".join(f"    {line}" for line in config.splitlines())
        self._writer.add_text("config", quoted, purge_step or 0)
        for item in again:
            self.log(item.step, {n: v for n, v in item.values.items() if math.isfinite(v)})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_samples(self, step: int, name: SamplesOf, samples: Sequence[TextSample]) -> None:
        """See `Tracker.log_samples`."""
        for index, sample in enumerate(samples):
            self._writer.add_text(f"samples/{name}_{index}", sample.markdown(), step)

    def close(self, *, ended_well: bool) -> None:
        """See `Tracker.close`."""
        self._writer.close()
