"""One run of the pipeline: bounded calls to engines and scorer, what is open, what is finished."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from herl_megatron.engine import RolloutEngine
from herl_megatron.errors import RunError
from herl_megatron.hindsight.experience import PromptTokenizer
from herl_megatron.rollout.carry import GeneratePhase, GroupProgress, ScorePhase, continuation, join
from herl_megatron.rollout.liveness import not_finite
from herl_megatron.rollout.pipeline_stats import WorkClock
from herl_megatron.types import (
    Completion,
    GenerateRequest,
    HindsightExperience,
    IntArray,
    Prompt,
    Rollout,
    Score,
    ScoredGroup,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
_ABORT_TIMEOUT_S = 10.0
_KINDS: dict[GeneratePhase, Literal["rollout", "revision"]] = {
    "first samples": "rollout",
    "revisions": "revision",
}


class Tokenizer(PromptTokenizer, Protocol):
    """What is needed of `data.chat.ChatTokenizer`."""

    def decode(self, ids: IntArray) -> str:
        """Text without special tokens."""
        ...


class GroupScorer(Protocol):
    """What is needed of `rubrics.pool.ScoringPool`."""

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order."""
        ...


class PipelineError(RunError):
    """A call of the pipeline failed or took too long.

    `engine_index` is None where no engine took part (scoring). `finished` holds the groups that
    were complete, in prompt order, so that the caller can log them.
    """

    def __init__(
        self,
        message: str,
        *,
        prompt_id: str,
        phase: str,
        engine_index: int | None,
        policy_lost: bool = False,
    ) -> None:
        super().__init__(message, policy_lost=policy_lost)
        self.prompt_id = prompt_id
        self.phase = phase
        self.engine_index = engine_index
        self.finished: list[ScoredGroup] = []


class Interrupted(Exception):
    """The run was cut before this group was complete; its job knows how far it came."""


@dataclass(frozen=True, eq=False)
class GroupJob:
    """One group to sample, named by the step that its prompt was drawn for and its position there.

    `first_index` counts on where a prompt was drawn twice in one step.
    """

    step: int
    position: int
    prompt: Prompt
    prompt_token_ids: IntArray
    engine_index: int
    first_index: int
    progress: GroupProgress = field(default_factory=GroupProgress)


@dataclass(frozen=True, eq=False)
class Drafted:
    """A scored group and its sampled revisions, one experience each, not yet scored."""

    scored: ScoredGroup
    experiences: tuple[HindsightExperience, ...]
    revisions: tuple[Rollout, ...]
    too_long: int


class PipelineRun:
    """The state of one stream. Every wait ends within `timeout_s`, in which the time that scoring
    is paused (`scoring_paused_s`, its total so far) does not count."""

    def __init__(
        self,
        timeout_s: float,
        engines: Sequence[RolloutEngine],
        clock: WorkClock,
        on_group: Callable[[ScoredGroup], None] | None,
        *,
        scoring_paused_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.clock = clock
        self._timeout_s = timeout_s
        self._engines = engines
        self._on_group = on_group
        self._open: list[dict[str, None]] = [{} for _ in engines]
        self._finished: dict[GroupJob, ScoredGroup] = {}
        self._scoring_paused_s = scoring_paused_s
        self._cut = False

    async def generate(
        self,
        job: GroupJob,
        requests: Sequence[GenerateRequest],
        phase: GeneratePhase,
        *,
        arrived: Callable[[Completion], None] | None = None,
    ) -> tuple[Completion, ...]:
        """Sample what the job does not have yet of `requests`, on its engine.

        `arrived` hears of each complete response at once; the engine is then asked for each by a
        call of its own. Raises `Interrupted` once the run is cut, unless nothing is missing.
        """
        have = {part.request_id: part for part in job.progress.completions.get(phase, ())}
        missing = []
        for request in requests:
            part = have.get(request.request_id)
            if part is None:
                missing.append(request)
            elif part.finish_reason == "abort":
                missing.append(continuation(request, part))
        if missing and self._cut:
            raise Interrupted

        async def ask(some: Sequence[GenerateRequest]) -> None:
            if self._cut:  # between the check above and here; an abort would not find it
                return
            for answer in await self._send(job, some, phase):
                part = have.get(answer.request_id)
                whole = answer if part is None else join(part, answer)
                have[answer.request_id] = whole
                self.clock.add_tokens(_KINDS[phase], len(answer.token_ids))
                if arrived is not None and whole.finish_reason != "abort":
                    arrived(whole)

        calls = [missing] if arrived is None else [[request] for request in missing]
        await all_or_none(ask(some) for some in calls if some)
        asked = (have.get(request.request_id) for request in requests)
        completions = tuple(answer for answer in asked if answer is not None)
        job.progress.completions[phase] = completions
        complete = [answer for answer in completions if answer.finish_reason != "abort"]
        if len(complete) < len(requests):
            raise Interrupted
        return completions

    async def _send(
        self, job: GroupJob, requests: Sequence[GenerateRequest], phase: GeneratePhase
    ) -> list[Completion]:
        """The engine's answers; the ids of `requests` are open until all have come back."""
        ids = [request.request_id for request in requests]
        open_ids = self._open[job.engine_index]
        open_ids.update(dict.fromkeys(ids))
        with self.clock.working("generation"):
            call = self._engines[job.engine_index].generate(requests)
            completions = await self._bounded(call, job, phase, job.engine_index)
        fault = _fault(completions, ids, may_abort=self._cut)
        if fault:
            raise _error(job, phase, job.engine_index, fault)
        if lost := not_finite(completions):
            raise _error(job, phase, job.engine_index, lost, policy_lost=True)
        for request_id in ids:
            del open_ids[request_id]
        return completions

    async def score(
        self, job: GroupJob, scorer: GroupScorer, texts: Sequence[str], phase: ScorePhase
    ) -> tuple[Score, ...]:
        """Score `texts` against the job's rubric, unless the job has their scores."""
        if phase in job.progress.scores:
            return job.progress.scores[phase]
        with self.clock.working("scoring"):
            call = scorer.score_group(job.prompt, texts)
            paused_s = self._scoring_paused_s
            scores = await self._bounded(call, job, phase, None, paused_s=paused_s)
        if len(scores) != len(texts):
            raise _error(job, phase, None, f"gave {len(scores)} scores for {len(texts)} texts")
        job.progress.scores[phase] = tuple(scores)
        return job.progress.scores[phase]

    def finish(self, job: GroupJob, group: ScoredGroup) -> ScoredGroup:
        """Keep a complete group, also for the case that a later one fails."""
        self._finished[job] = group
        if self._on_group is not None:
            self._on_group(group)
        return group

    def finished_in_order(self) -> list[ScoredGroup]:
        """Complete groups in prompt order."""
        jobs = sorted(self._finished, key=lambda job: (job.step, job.position))
        return [self._finished[job] for job in jobs]

    async def cut(self) -> None:
        """Stop sampling: what was drawn so far comes back to who waits for it, nothing new starts.

        Scoring that is under way goes on, so that no judge is asked twice.
        """
        self._cut = True
        await self.abort_open_requests()

    async def abort_open_requests(self) -> None:
        """Tell every engine to drop what nobody waits for any more; never raises for an engine."""
        await asyncio.gather(*(self._abort(index) for index in range(len(self._engines))))

    async def _abort(self, index: int) -> None:
        if not self._open[index]:
            return
        try:
            async with asyncio.timeout(min(self._timeout_s, _ABORT_TIMEOUT_S)):
                await self._engines[index].abort(list(self._open[index]))
        except Exception as error:  # process border; the failure that led here is being raised
            logger.warning("engine %d did not abort its requests: %r", index, error)

    async def _bounded(
        self,
        call: Awaitable[T],
        job: GroupJob,
        phase: str,
        engine_index: int | None,
        *,
        paused_s: Callable[[], float] = lambda: 0.0,
    ) -> T:
        task = asyncio.ensure_future(call)
        try:
            if await self._done_in_time(task, paused_s):
                return task.result()
        except Exception as error:  # process border: whatever an engine or a scorer raises
            reason = f"failed: {type(error).__name__}: {error}"
            raise _error(job, phase, engine_index, reason) from error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        late = f"gave no result within {self._timeout_s:g} s (rollout.timeout_s)"
        raise _error(job, phase, engine_index, late)

    async def _done_in_time(self, task: asyncio.Future[T], paused_s: Callable[[], float]) -> bool:
        """Whether `task` ends within the limit, to which pauses meanwhile are added."""
        seen_s, left_s = paused_s(), self._timeout_s
        while left_s > 0:
            done, _ = await asyncio.wait({task}, timeout=left_s)
            if done:
                return True
            now_s = paused_s()
            seen_s, left_s = now_s, now_s - seen_s
        return False


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run together; the first failure cancels the rest, waits for their end and is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _error(
    job: GroupJob, phase: str, engine_index: int | None, reason: str, *, policy_lost: bool = False
) -> PipelineError:
    where = "the scorer" if engine_index is None else f"engine {engine_index}"
    return PipelineError(
        f"prompt {job.prompt.id!r}, {phase}: {where} {reason}",
        prompt_id=job.prompt.id,
        phase=phase,
        engine_index=engine_index,
        policy_lost=policy_lost,
    )


def _fault(completions: Sequence[Completion], ids: Sequence[str], *, may_abort: bool) -> str | None:
    """What is wrong with an engine's answer, if anything."""
    returned = [completion.request_id for completion in completions]
    if returned != list(ids):
        return f"returned requests {returned} for {list(ids)}"
    for completion in completions:
        tokens, log_probs = len(completion.token_ids), len(completion.log_probs)
        was_cut = completion.finish_reason == "abort"
        if was_cut and not may_abort:
            return f"aborted request {completion.request_id}"
        if tokens != log_probs or not (tokens or was_cut):
            return f"gave {tokens} tokens and {log_probs} log-probs for {completion.request_id}"
    return None
