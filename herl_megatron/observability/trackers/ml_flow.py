"""MLflow: a tracking server, or a folder."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from herl_megatron.config.schema import TrackingConfig
from herl_megatron.observability.trackers.protocol import SamplesOf, TextSample, TrackedRun

_LONGEST_PARAMETER = 6000
"""Characters that MLflow takes of one parameter's value."""
_AT_ONCE = 100
"""Parameters of one request."""
_UNNAMEABLE = re.compile(r"[^\w./ :-]")


class MLflow:
    """A `Tracker`.

    earlier: id of the run that a resumed one goes on with; keep: stores the id, `keep(name, id)`.
    """

    def __init__(
        self,
        tracking: TrackingConfig,
        run: TrackedRun,
        *,
        earlier: str | None,
        keep: Callable[[str, str], None],
    ) -> None:
        from mlflow import MlflowClient, entities

        self._entities: Any = entities
        self._client: Any = MlflowClient(tracking_uri=tracking.mlflow)
        if earlier is not None:
            self._id = earlier
            self._client.update_run(earlier, status="RUNNING")
        else:
            experiment = self._client.get_experiment_by_name(tracking.project)
            number = (
                self._client.create_experiment(tracking.project)
                if experiment is None
                else experiment.experiment_id
            )
            tags = {"command": run.command} | ({"group": tracking.group} if tracking.group else {})
            self._id = self._client.create_run(number, run_name=run.name, tags=tags).info.run_id
            keep("mlflow", self._id)
            self._log_config(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        now = time.time_ns() // 1_000_000
        metrics = [
            self._entities.Metric(_metric_name(name), value, now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def log_samples(self, step: int, name: SamplesOf, samples: Sequence[TextSample]) -> None:
        """See `Tracker.log_samples`."""
        text = "\n\n---\n\n".join(sample.markdown() for sample in samples)
        self._client.log_text(self._id, text, f"samples/{name}_{step:06d}.md")

    def close(self, *, ended_well: bool) -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self._id, status="FINISHED" if ended_well else "FAILED")

    def _log_config(self, run: TrackedRun) -> None:
        """Every key as a parameter, to compare runs by, and the whole as a file."""
        parameters = [
            self._entities.Param(key, value[:_LONGEST_PARAMETER])
            for key, value in run.flat_config().items()
        ]
        for start in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._id, params=parameters[start : start + _AT_ONCE])
        self._client.log_text(
            self._id, json.dumps(run.config, indent=2, allow_nan=False), "config.json"
        )


def _metric_name(name: str) -> str:
    """MLflow takes letters, digits, and `_ - . /` and blanks; a colon too on Linux. One name that
    it refuses costs all metrics of a step, and names of checks and sources are a user's."""
    return _UNNAMEABLE.sub("_", name)
