"""Sections `run` and `cluster`: where a run writes and where its processes are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from herl_megatron.config.schema.base import MOST_PROCESSES, Nothing, Numbers, Section, Speed


class RunConfig(Section):
    """Where the run writes and how it is seeded."""

    name: Nothing[str] = "herl"
    """Folder under `dir`, which no other run may contain or lie in: `NAME` or `GROUP/NAME`."""
    dir: Nothing[str] = "runs"
    """Parent folder of all runs."""
    seed: Numbers[int] = 0
    """Seed of prompt order, sampling and model initialisation."""
    overwrite: Nothing[bool] = False
    """Replace an earlier run of the same name instead of refusing to start: herl's own files in its
    folder go, whatever else lies there stays."""
    resume: Nothing[bool] = False
    """Continue from the newest undamaged checkpoint in the run's folder, or start at step 0 where
    there is none yet, so that a job script can always set it. Results without a checkpoint are
    moved to `NAME.before-1` (the next free number) first."""


class ClusterConfig(Section):
    """Where processes run."""

    address: Speed[str] = ""
    """Ray address to join; empty starts a Ray on this machine and stops it at the end."""
    device: Speed[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device of trainer and engines; auto takes CUDA when there is one."""
    gpu_table: Nothing[str] = ""
    """YAML file with GPUs that herl does not know (docs/planning.md): their peak for `perf/mfu`,
    and for `herl plan`."""
    start_timeout_s: Speed[float] = Field(default=600, gt=0)
    """Longest wait for each part of the trainer's start: processes, their meeting, the model with
    its weights read."""
    threads_per_rank: Speed[int] = Field(default=1, gt=0, le=MOST_PROCESSES)
    """CPU threads of each trainer rank and engine."""
