"""Section `tracking`: where a run's numbers are shown beside its own folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from herl_megatron.config.schema.base import MOST_AT_ONCE, Nothing, Section


class TrackingConfig(Section):
    """Experiment trackers. One that fails costs its own record and a warning, never the run."""

    tensorboard: Nothing[bool] = True
    """Event files in the run's folder."""
    wandb: Nothing[Literal["off", "online", "offline"]] = "off"
    """Weights & Biases. The key comes from `WANDB_API_KEY` or `wandb login`; offline runs lie in
    the run's folder until `wandb sync`."""
    wandb_entity: Nothing[str] = ""
    """Team or user there; empty takes the key's default."""
    mlflow: Nothing[str] = ""
    """MLflow's tracking URI, such as `http://HOST:5000`; empty uses none. Credentials come from
    MLflow's own environment variables."""
    project: Nothing[str] = "herl_megatron"
    """Project (W&B) or experiment (MLflow)."""
    group: Nothing[str] = ""
    """Group of runs, such as the seeds of one setup."""
    samples: Nothing[int] = Field(default=2, ge=0, le=MOST_AT_ONCE)
    """Prompts of which a response is shown as text, per evaluation and per logged step."""
    samples_every: Nothing[int] = Field(default=10, ge=0)
    """Training steps between two such texts; 0 shows evaluations only."""
