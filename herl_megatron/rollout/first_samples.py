"""How a group's rollouts are drawn: each by one request, or each by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from herl_megatron.config.rollout_function import rollout_function
from herl_megatron.config.schema import RolloutConfig
from herl_megatron.rollout.carry import GeneratePhase
from herl_megatron.rollout.conversation import (
    Conversation,
    ConversationFull,
    OwnRollout,
)
from herl_megatron.rollout.pipeline_run import GroupJob, PipelineRun, Tokenizer, all_or_none
from herl_megatron.seeds import request_seed, turn_seed
from herl_megatron.types import Completion, GenerateRequest, IntArray, SamplingSettings

FIRST_SAMPLE_PRIORITY = 0
_PHASE: GeneratePhase = "first samples"
Arrived = Callable[[Completion], None]
"""Hears of each response as soon as it is complete."""


class FirstSamples(Protocol):
    """Draws the rollouts of a group."""

    async def draw(
        self, run: PipelineRun, job: GroupJob, arrived: Arrived
    ) -> tuple[Completion, ...]:
        """One response per rollout, in order. Errors as in `RolloutPipeline.run`."""
        ...


def open_first_samples(
    rollout: RolloutConfig,
    sampling: SamplingSettings,
    tokenizer: Tokenizer,
    *,
    group_size: int,
    seed: int,
) -> FirstSamples:
    """As `rollout.function` says.

    Raises:
        ValueError: as `config.rollout_function`.
    """
    plain = PlainSamples(sampling, group_size=group_size, seed=seed)
    function = own_rollout(rollout)
    if function is None:
        return plain
    return OwnSamples(plain, function, f"rollout.function {rollout.function}", tokenizer)


def own_rollout(rollout: RolloutConfig) -> OwnRollout | None:
    """The function that `rollout.function` names, its options applied; None without one.

    Raises:
        ValueError: as `config.rollout_function`.
    """
    found = rollout_function(rollout)
    if found is None:
        return None
    hook, options = found

    async def function(talk: Conversation) -> None:
        await hook.call(talk, **options)

    return function


class PlainSamples:
    """One request per rollout."""

    def __init__(self, sampling: SamplingSettings, *, group_size: int, seed: int) -> None:
        self._sampling = sampling
        self._group_size = group_size
        self._seed = seed

    async def draw(
        self, run: PipelineRun, job: GroupJob, arrived: Arrived
    ) -> tuple[Completion, ...]:
        """See `FirstSamples.draw`."""
        return await run.generate(job, self.requests(job), _PHASE, arrived=arrived)

    def requests(self, job: GroupJob) -> list[GenerateRequest]:
        """One per rollout of the job."""
        return [
            GenerateRequest(
                request_id=f"step{job.step}-prompt{job.position}-rollout{index}",
                prompt_token_ids=job.prompt_token_ids,
                sampling=self._sampling,
                seed=request_seed(
                    self._seed,
                    step=job.step,
                    prompt_id=job.prompt.id,
                    kind="rollout",
                    index=job.first_index + index,
                ),
                priority=FIRST_SAMPLE_PRIORITY,
            )
            for index in range(self._group_size)
        ]


class OwnSamples:
    """One conversation per rollout, all of a group at once; the first turn of each is what
    `PlainSamples` would ask for."""

    def __init__(
        self, plain: PlainSamples, function: OwnRollout, name: str, tokenizer: Tokenizer
    ) -> None:
        self._plain = plain
        self._function = function
        self._name = name
        self._tokenizer = tokenizer

    async def draw(
        self, run: PipelineRun, job: GroupJob, arrived: Arrived
    ) -> tuple[Completion, ...]:
        """See `FirstSamples.draw`; a job that a checkpoint has kept knows its responses."""
        requests = self._plain.requests(job)
        known = job.progress.completions.get(_PHASE)
        if known is None:
            drawing = (self._converse(run, job, request, arrived) for request in requests)
            known = tuple(await all_or_none(drawing))
            job.progress.completions[_PHASE] = known
        return known

    async def _converse(
        self, run: PipelineRun, job: GroupJob, request: GenerateRequest, arrived: Arrived
    ) -> Completion:
        async def draw(context: IntArray, *, max_tokens: int, call: int) -> Completion:
            asked = replace(
                request,
                request_id=f"{request.request_id}-turn{call}",
                prompt_token_ids=context,
                sampling=replace(request.sampling, max_tokens=max_tokens),
                seed=turn_seed(request.seed, turn=call),
            )
            return await run.ask(job, asked, _PHASE)

        talk = Conversation(
            job.prompt,
            job.prompt_token_ids,
            self._tokenizer,
            draw,
            max_tokens=request.sampling.max_tokens,
        )

        async def whole() -> Completion:
            try:
                await self._function(talk)
            except ConversationFull:
                pass  # what is there is a response that was cut at its limit
            except Exception:
                talk.raise_failure()  # an engine's, whatever the function made of it
                raise
            return talk.response(request.request_id)

        response = await run.finish_own(job, _PHASE, self._name, whole(), lambda: talk.doing)
        arrived(response)
        return response
