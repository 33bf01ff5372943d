"""When the rollouts of a step are drawn, and with which weights (`rollout.mode`).

- `sync`: every step samples its own prompts with its own weights.
- `partial`: more prompts are in flight than a step trains on. When enough groups are complete the
  unfinished responses are cut; they go on in the next step under its weights, so that nobody waits
  for the longest. The oldest complete groups are used first, and a step waits for every group whose
  first weights are `rollout.max_staleness` versions old: nothing is thrown away, and no token is
  older than that when it is learnt from. First samples, revisions and scores are all carried;
  only scoring that is under way is waited for. The last steps take fewer new prompts, so a run uses
  exactly as many as a `sync` one.
- `one_step_off`: while the trainer learns from step k, step k + 1 is sampled with the weights that
  step k began with, so every token but the first step's is one version old. The engines get new
  weights when both are done.

Every token keeps the log-prob and the version that it was drawn with; the loss corrects for both
(`algorithm.mismatch_weight`). `sync` and `one_step_off` are reproducible, whatever the timing; in
`partial` time decides which responses are cut and where, so two runs differ.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from herl_megatron.config.schema import RolloutConfig, TrainConfig
from herl_megatron.data.prompt_source import PromptStream
from herl_megatron.rollout.carry import dump_progress, load_progress
from herl_megatron.rollout.pipeline import RolloutPipeline
from herl_megatron.rollout.pipeline_run import GroupJob
from herl_megatron.rollout.pipeline_stats import PipelineStats
from herl_megatron.rollout.staleness import staleness_metrics
from herl_megatron.types import Prompt, ScoredGroup


class GroupSource(Protocol):
    """Where the loop's groups come from. A step is: `next`, learn, `drain`, sync the weights."""

    async def next(self, step: int) -> list[ScoredGroup]:
        """The groups that `step` trains on. Errors as in `RolloutPipeline.run`."""
        ...

    async def drain(self) -> None:
        """Return when nothing is being sampled: the engines may get new weights. Raises what ended
        the sampling."""
        ...

    def metrics(self) -> dict[str, float]:
        """How the groups of the last `next` were drawn."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs to go on, as plain JSON values; after `drain`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; ValueError if data or seed differ."""
        ...

    async def close(self) -> None:
        """End what is under way."""
        ...


def open_source(
    pipeline: RolloutPipeline,
    prompts: Sequence[Prompt],
    *,
    train: TrainConfig,
    rollout: RolloutConfig,
    seed: int,
    shuffle: bool,
) -> GroupSource:
    """The source of `rollout.mode` over the training prompts, drawn by `seed` and `shuffle`."""
    stream = PromptStream(prompts, seed=seed, shuffle=shuffle)
    if rollout.mode == "partial":
        return PartialSource(stream, pipeline, prompts, train, rollout)
    if rollout.mode == "one_step_off":
        return OneStepOffSource(stream, pipeline, prompts, train)
    return SyncSource(stream, pipeline, train)


def prompts_in_flight(train: TrainConfig, rollout: RolloutConfig) -> int:
    """Most prompts that are sampled at the same time, which the data must have."""
    share = rollout.oversample if rollout.mode == "partial" else 0.0
    return train.prompts_per_step + math.ceil(train.prompts_per_step * share)


class SyncSource:
    """`sync`: the prompts of the step, drawn and sampled when they are asked for."""

    def __init__(self, stream: PromptStream, pipeline: RolloutPipeline, train: TrainConfig) -> None:
        self._stream = stream
        self._pipeline = pipeline
        self._prompts_per_step = train.prompts_per_step

    async def next(self, step: int) -> list[ScoredGroup]:
        """See `GroupSource.next`."""
        return await self._pipeline.run(self._stream.next_batch(self._prompts_per_step), step)

    async def drain(self) -> None:
        """Nothing is sampled between two calls of `next`."""

    def metrics(self) -> dict[str, float]:
        """See `GroupSource.metrics`."""
        return _stats(self._pipeline).metrics()

    def state_dict(self) -> dict[str, Any]:
        """See `GroupSource.state_dict`."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `GroupSource.load_state_dict`."""
        self._stream.load_state_dict(state)

    async def close(self) -> None:
        """Nothing is under way."""


class PartialSource:
    """`partial`: unfinished groups of a step go on in the next one (module docstring)."""

    def __init__(
        self,
        stream: PromptStream,
        pipeline: RolloutPipeline,
        prompts: Sequence[Prompt],
        train: TrainConfig,
        rollout: RolloutConfig,
    ) -> None:
        self._stream = stream
        self._pipeline = pipeline
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._prompts_per_step = train.prompts_per_step
        self._in_flight = prompts_in_flight(train, rollout)
        self._steps = train.step_count
        self._max_staleness = rollout.max_staleness
        self._carried: list[GroupJob] = []
        self._metrics: dict[str, float] = {}

    async def next(self, step: int) -> list[ScoredGroup]:
        """See `GroupSource.next`. Carried groups come first, in the order of their prompts."""
        needed = self._prompts_per_step
        wanted = min(self._in_flight, needed * (self._steps - step))
        fresh = self._stream.next_batch(max(wanted - len(self._carried), 0))
        jobs = self._carried + self._pipeline.jobs(fresh, step)
        due = {job for job in jobs if step - job.step >= self._max_staleness}

        def enough(complete: Collection[GroupJob]) -> bool:
            return len(complete) >= needed and due.issubset(complete)

        groups = await self._pipeline.run_until(jobs, enough)
        complete = [(job, group) for job, group in zip(jobs, groups, strict=True) if group]
        used = dict(complete[:needed])
        assert due <= used.keys(), f"{len(due)} groups are due in a step of {needed}"
        self._carried = [job for job in jobs if job not in used]
        self._metrics = (
            _stats(self._pipeline).metrics()
            | staleness_metrics(list(used.values()), step)
            | {
                "rollout/carried_groups": float(len(self._carried)),
                "rollout/carried_tokens": float(sum(j.progress.tokens for j in self._carried)),
            }
        )
        return list(used.values())

    async def drain(self) -> None:
        """Nothing is sampled between two calls of `next`."""

    def metrics(self) -> dict[str, float]:
        """See `GroupSource.metrics`; `carried_*` is what is left for the next step."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """See `GroupSource.state_dict`: the prompt cursor and every carried group."""
        return self._stream.state_dict() | {"carried": _dump_jobs(self._carried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `GroupSource.load_state_dict`."""
        self._stream.load_state_dict(state)
        self._carried = _load_jobs(state["carried"], self._pipeline, self._prompts)

    async def close(self) -> None:
        """Nothing is under way."""


class OneStepOffSource:
    """`one_step_off`: the next step's groups are sampled while this one's are learnt from."""

    def __init__(
        self,
        stream: PromptStream,
        pipeline: RolloutPipeline,
        prompts: Sequence[Prompt],
        train: TrainConfig,
    ) -> None:
        self._stream = stream
        self._pipeline = pipeline
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._prompts_per_step = train.prompts_per_step
        self._steps = train.step_count
        self._jobs: list[GroupJob] = []
        self._ahead: asyncio.Task[list[ScoredGroup]] | None = None
        self._ahead_stats: PipelineStats | None = None
        self._metrics: dict[str, float] = {}

    async def next(self, step: int) -> list[ScoredGroup]:
        """See `GroupSource.next`. From its return on, the next step's prompts are sampled."""
        if self._ahead is None:
            self._start(step)
        groups = await self._finished()
        self._metrics = self._stats().metrics() | staleness_metrics(groups, step)
        self._ahead, self._ahead_stats, self._jobs = None, None, []
        if step + 1 < self._steps:
            self._start(step + 1)
        return groups

    async def drain(self) -> None:
        """See `GroupSource.drain`."""
        if self._ahead is not None:
            await self._finished()

    def metrics(self) -> dict[str, float]:
        """See `GroupSource.metrics`."""
        return self._metrics

    def state_dict(self) -> dict[str, Any]:
        """See `GroupSource.state_dict`: the prompt cursor and the groups of the next step."""
        stats = None
        if self._ahead is not None:
            assert self._ahead.done(), "the state of a source is taken after `drain`"
            stats = asdict(self._stats())
        return self._stream.state_dict() | {"carried": _dump_jobs(self._jobs), "stats": stats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `GroupSource.load_state_dict`."""
        self._stream.load_state_dict(state)
        self._jobs = _load_jobs(state["carried"], self._pipeline, self._prompts)
        if state["stats"] is not None:
            self._ahead_stats = PipelineStats(**state["stats"])

    async def close(self) -> None:
        """Cancel what is being sampled."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)

    def _start(self, step: int) -> None:
        if not self._jobs:  # a resumed run has them, all calls answered
            prompts = self._stream.next_batch(self._prompts_per_step)
            self._jobs = self._pipeline.jobs(prompts, step)
        self._ahead = asyncio.create_task(self._pipeline.run_jobs(self._jobs))

    async def _finished(self) -> list[ScoredGroup]:
        """The groups under way; whoever is cancelled in this wait leaves them under way."""
        assert self._ahead is not None, "nothing is being sampled"
        return await asyncio.shield(self._ahead)

    def _stats(self) -> PipelineStats:
        """Of the groups under way, which are complete: as sampled, not as read back."""
        return self._ahead_stats or _stats(self._pipeline)


def _stats(pipeline: RolloutPipeline) -> PipelineStats:
    assert pipeline.stats is not None, "a finished run of the pipeline has statistics"
    return pipeline.stats


def _dump_jobs(jobs: Sequence[GroupJob]) -> list[dict[str, Any]]:
    return [
        {
            "step": job.step,
            "position": job.position,
            "first_index": job.first_index,
            "prompt_id": job.prompt.id,
            "progress": dump_progress(job.progress),
        }
        for job in jobs
    ]


def _load_jobs(
    values: Sequence[Mapping[str, Any]],
    pipeline: RolloutPipeline,
    prompts: Mapping[str, Prompt],
) -> list[GroupJob]:
    """Undo `_dump_jobs`; the prompt stream has checked that the prompts are the same."""
    return [
        pipeline.job(
            prompts[value["prompt_id"]],
            step=value["step"],
            position=value["position"],
            first_index=value["first_index"],
            progress=load_progress(value["progress"]),
        )
        for value in values
    ]
