"""Experiment trackers behind one small interface: TensorBoard, Weights & Biases, MLflow.

Their own libraries do the work. A tracker that fails, or never answers, costs its own record and a
warning, never the run (`fan_out`). To add one: a class like those beside this file, a key in
`config.schema.tracking`, a line in `open_trackers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from herl_megatron.config.schema import TrackingConfig
from herl_megatron.observability.trackers.fan_out import Trackers
from herl_megatron.observability.trackers.ids import read_ids, write_id
from herl_megatron.observability.trackers.protocol import TrackedRun, Tracker
from herl_megatron.types import StepMetrics


def open_trackers(
    tracking: TrackingConfig,
    run: TrackedRun,
    *,
    purge_step: int | None = None,
    again: Sequence[StepMetrics] = (),
) -> Trackers:
    """Every tracker that is asked for, each opened in a thread of its own.

    purge_step: of a resumed run, the step from which on earlier points are written again.
    again: what the run keeps of those, an evaluation at the checkpoint.
    """
    ids = read_ids(run.folder)
    keep = partial(write_id, run.folder)
    builders: dict[str, Callable[[], Tracker]] = {}
    if tracking.tensorboard:
        builders["TensorBoard"] = lambda: _tensorboard(run, purge_step, again)
    if tracking.wandb != "off":
        builders["W&B"] = lambda: _wandb(tracking, run, ids.get("wandb"), keep)
    if tracking.mlflow:
        builders["MLflow"] = lambda: _mlflow(tracking, run, ids.get("mlflow"), keep)
    return Trackers(builders)


# Imported where they are used: each takes seconds, and most runs have one of them.


def _tensorboard(run: TrackedRun, purge_step: int | None, again: Sequence[StepMetrics]) -> Tracker:
    from herl_megatron.observability.trackers.board import TensorBoard

    return TensorBoard(run, purge_step=purge_step, again=again)


def _wandb(
    tracking: TrackingConfig, run: TrackedRun, earlier: str | None, keep: Callable[[str, str], None]
) -> Tracker:
    from herl_megatron.observability.trackers.weights_and_biases import WeightsAndBiases

    return WeightsAndBiases(tracking, run, earlier=earlier, keep=keep)


def _mlflow(
    tracking: TrackingConfig, run: TrackedRun, earlier: str | None, keep: Callable[[str, str], None]
) -> Tracker:
    from herl_megatron.observability.trackers.ml_flow import MLflow

    return MLflow(tracking, run, earlier=earlier, keep=keep)
