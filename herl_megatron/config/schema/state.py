"""Sections `checkpoint`, `weight_sync` and `parity`: what leaves the trainer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from herl_megatron.config.schema.base import MOST_AT_ONCE, Nothing, Section, Speed


class CheckpointConfig(Section):
    """Training state on disk, in `checkpoints/` of the run's folder; see `run.resume`.

    A checkpoint is code: parts of it are pickles, so resume or convert only what you trust.
    """

    every: Nothing[int] = Field(default=20, ge=0)
    """Steps between checkpoints, the last step always being one; 0 writes none."""
    keep: Nothing[int] = Field(default=2, gt=0)
    """Newest checkpoints that stay; with two, a damaged one still has a predecessor."""
    timeout_s: Speed[float] = Field(default=1800, gt=0)
    """Longest wait for all ranks to write or read one."""


class WeightSyncConfig(Section):
    """Trainer to engine transfer."""

    transport: Speed[Literal["auto", "shared_memory", "cuda_ipc"]] = "auto"
    """How a bucket gets from trainer to engine: `shared_memory` by way of the host, `cuda_ipc` in
    memory of the GPU that both are on (needs a trainer rank on every GPU of the engines; takes two
    buckets of each). `auto` is `cuda_ipc` where it can be, always `shared_memory` on CPU."""
    bucket_bytes: Speed[int] = Field(default=1 << 30, gt=0)
    """Bytes sent at a time; a larger single tensor travels alone."""
    timeout_s: Speed[float] = Field(default=600, gt=0)
    """Longest wait for one bucket."""


class ParityConfig(Section):
    """The gate that compares engine and trainer log-probs after a weight sync.

    Limits hold for |difference| over the probe tokens, its mean and its largest value, in natural
    log units. They are `noise_factor` times what rounding does to this model, which is measured at
    the start of every run, and never above the caps below; bf16 counts if the trainer or the engine
    computes in it. `parity/of_limit` in a run's metrics is the share of a limit that is used.
    """

    every: Nothing[int] = Field(default=10, ge=0)
    """Check every so many weight versions, and the first one that a run serves; 0 is off."""
    prompts: Nothing[int] = Field(default=8, gt=0, le=MOST_AT_ONCE)
    """Training prompts (of SFT and DPO, held-out ones) whose tokens are compared, chosen once with
    `run.seed`."""
    baseline: Nothing[Literal["folder", "first_sync"]] = "folder"
    """What the noise is measured on. `folder`: one engine first reads `model.path` by vLLM's own
    loader, which the weight sync has no part in (where the trainer starts from other weights, as
    `first_sync`). `first_sync`: the first sync, held to the caps alone; saves that reading."""
    noise_factor: Nothing[float] = Field(default=2.0, ge=1)
    """How many times the noise a difference may be."""
    fp32_mean: Nothing[float] = Field(default=1e-4, gt=0)
    """Cap of the mean in fp32."""
    fp32_max: Nothing[float] = Field(default=1e-2, gt=0)
    """Cap of a single difference in fp32."""
    bf16_mean: Nothing[float] = Field(default=0.15, gt=0)
    """Cap of the mean in bf16."""
    bf16_max: Nothing[float] = Field(default=3.0, gt=0)
    """Cap of a single difference in bf16."""
    fp8_mean: Nothing[float] = Field(default=0.4, gt=0)
    """Cap of the mean with FP8 in the trainer or the engines."""
    fp8_max: Nothing[float] = Field(default=4.0, gt=0)
    """Cap of a single difference with FP8."""
