"""Weights & Biases, online or offline (`wandb sync` sends an offline run later)."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from herl_megatron.config.schema import TrackingConfig
from herl_megatron.observability.trackers.fan_out import CLOSE_S
from herl_megatron.observability.trackers.protocol import SamplesOf, TextSample, TrackedRun

logger = logging.getLogger(__name__)

_COLUMNS = [
    "step", "prompt", "response", "reward", "unmet", "revision", "revision reward",
]  # fmt: skip


class WeightsAndBiases:
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
        # What it prints by itself would go between the run's own lines; the address is said below.
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb: Any = wandb
        name = earlier or uuid.uuid4().hex[:12]
        keep("wandb", name)  # before it is used: a start that is killed at once has it too
        self._run: Any = wandb.init(
            id=name,
            resume="allow",
            mode="online" if tracking.wandb == "online" else "offline",
            project=tracking.project,
            entity=tracking.wandb_entity or None,
            group=tracking.group or None,
            name=run.name,
            job_type=run.command,
            config=dict(run.config),
            dir=str(run.folder),
            # The console is the run's own, and `run.log` has it.
            settings=wandb.Settings(console="off", silent=True, **_limits(wandb.Settings)),
        )
        # Its own step may not go back, as a resumed run's does: ours is a number among the others.
        logger.info("W&B: %s", self._run.url or f"wandb sync {self._run.dir} sends it later")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log({"step": step} | dict(values))

    def log_samples(self, step: int, name: SamplesOf, samples: Sequence[TextSample]) -> None:
        """See `Tracker.log_samples`."""
        rows = [
            [step, s.prompt, s.response, s.reward, "; ".join(s.unmet), s.revision,
             s.revision_reward]
            for s in samples
        ]  # fmt: skip
        table = self._wandb.Table(columns=_COLUMNS, data=rows)
        self._run.log({"step": step, f"samples/{name}": table})

    def close(self, *, ended_well: bool) -> None:
        """See `Tracker.close`."""
        self._run.finish(exit_code=0 if ended_well else 1)


def _limits(settings: Any) -> dict[str, float]:
    """W&B's process is waited for as Python ends, without limit where the server is gone; what it
    has not sent stays on disk for `wandb sync`. Earlier versions know no limit."""
    known = "finish_timeout" in getattr(settings, "model_fields", {})
    return {"finish_timeout": 0.8 * CLOSE_S} if known else {}
