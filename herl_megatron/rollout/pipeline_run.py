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
    Message,
    Prompt,
    Rollout,
    Score,
    ScoredGroup,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
_ABORT_TIMEOUT_S = 10.0
_SCORER = "the scorer"
_KINDS: dict[GeneratePhase, Literal["rollout", "revision"]] = {
    "first samples": "rollout",
    "revisions": "revision",
}


class Tokenizer(PromptTokenizer, Protocol):
    """What is needed of `data.chat.ChatTokenizer`."""

    def decode(self, ids: IntArray) -> str:
        """Text without special tokens."""
        ...

    def reply_ids(self, messages: Sequence[Message], *, ended: bool) -> IntArray:
        """What follows an assistant's turn, with the next generation prompt, `[tokens]`."""
        ...


class GroupScorer(Protocol):
    """What is needed of `rubrics.scorer.Scorer`."""

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order."""
        ...

    def start_judging(self, prompt: Prompt, text: str) -> None:
        """Hear of a response that needs a judge before its group is complete."""
        ...

    def paused_s(self) -> float:
        """Seconds that scoring has been paused so far, which count against no limit."""
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
    """A scored group, with its replays, and its sampled revisions, one experience each, not yet
    scored."""

    scored: ScoredGroup
    experiences: tuple[HindsightExperience, ...] = ()
    revisions: tuple[Rollout, ...] = ()


class PipelineRun:
    """The state of one stream. Every wait ends within `timeout_s`, in which the time that scoring
    is paused does not count."""

    def __init__(
        self,
        timeout_s: float,
        engines: Sequence[RolloutEngine],
        clock: WorkClock,
        on_group: Callable[[ScoredGroup], None] | None,
    ) -> None:
        self.clock = clock
        self._timeout_s = timeout_s
        self._engines = engines
        self._on_group = on_group
        self._open: list[dict[str, None]] = [{} for _ in engines]
        self._finished: dict[GroupJob, ScoredGroup] = {}
        self._cut = False

    async def generate(
        self,
        job: GroupJob,
        requests: Sequence[GenerateRequest],
        phase: GeneratePhase,
        *,
        arrived: Callable[[Completion], None] = lambda _: None,
    ) -> tuple[Completion, ...]:
        """Sample what the job does not have yet of `requests`, on its engine.

        Each is a call of its own, and `arrived` hears of its response as soon as that is complete.
        Raises `Interrupted` once the run is cut, unless nothing is missing.
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

        async def ask_missing(request: GenerateRequest) -> None:
            if self._cut:  # between the check above and here; an abort would not find it
                return
            answer = await self.ask(job, request, phase)
            part = have.get(answer.request_id)
            whole = answer if part is None else join(part, answer)
            have[answer.request_id] = whole
            if whole.finish_reason != "abort":
                arrived(whole)

        await all_or_none(ask_missing(request) for request in missing)
        asked = (have.get(request.request_id) for request in requests)
        completions = tuple(answer for answer in asked if answer is not None)
        job.progress.completions[phase] = completions
        complete = [answer for answer in completions if answer.finish_reason != "abort"]
        if len(complete) < len(requests):
            raise Interrupted
        return completions

    async def ask(
        self, job: GroupJob, request: GenerateRequest, phase: GeneratePhase
    ) -> Completion:
        """The answer of the job's engine; the request is open until it has come back."""
        open_ids = self._open[job.engine_index]
        open_ids[request.request_id] = None
        with self.clock.working("generation"):
            call = self._engines[job.engine_index].generate([request])
            completions = await self._bounded(call, job, phase, job.engine_index)
        fault = _fault(completions, request.request_id, may_abort=self._cut)
        if fault:
            raise _error(job, phase, job.engine_index, fault)
        if lost := not_finite(completions):
            raise _error(job, phase, job.engine_index, lost, policy_lost=True)
        del open_ids[request.request_id]
        self.clock.add_tokens(_KINDS[phase], len(completions[0].token_ids))
        return completions[0]

    async def score(
        self, job: GroupJob, scorer: GroupScorer, texts: Sequence[str], phase: ScorePhase
    ) -> tuple[Score, ...]:
        """Score `texts` against the job's rubric, unless the job has their scores."""
        if phase in job.progress.scores:
            return job.progress.scores[phase]
        with self.clock.working("scoring"):
            call = scorer.score_group(job.prompt, texts)
            scores = await self._bounded(call, job, phase, _SCORER, paused_s=scorer.paused_s)
        if len(scores) != len(texts):
            raise _error(job, phase, _SCORER, f"gave {len(scores)} scores for {len(texts)} texts")
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

    async def finish_own(
        self, job: GroupJob, phase: str, name: str, call: Awaitable[T], doing: Callable[[], str]
    ) -> T:
        """The result of a user's own code, as bounded as a call to an engine.

        name, doing: what it is and what it waits for, for the error. One of our own errors that
        passed through it stays what it is.
        """
        return await self._bounded(call, job, phase, name, doing=doing)

    async def _bounded(
        self,
        call: Awaitable[T],
        job: GroupJob,
        phase: str,
        place: int | str,
        *,
        paused_s: Callable[[], float] = lambda: 0.0,
        doing: Callable[[], str] = lambda: "",
    ) -> T:
        task = asyncio.ensure_future(call)
        try:
            if await self._done_in_time(task, paused_s):
                return task.result()
        except (PipelineError, Interrupted):
            raise
        except Exception as error:  # process border: whatever an engine, a scorer or a user raises
            raise failure(job, phase, place, error) from error
        finally:
            waited_for = doing()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        late = f"gave no result within {self._timeout_s:g} s (rollout.timeout_s){waited_for}"
        raise _error(job, phase, place, late)

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


def failure(job: GroupJob, phase: str, place: int | str, error: Exception) -> PipelineError:
    """`error` as what ends the run, with where it happened: an engine's number, or a name."""
    return _error(job, phase, place, f"failed: {type(error).__name__}: {error}")


def _error(
    job: GroupJob, phase: str, place: int | str, reason: str, *, policy_lost: bool = False
) -> PipelineError:
    is_engine = isinstance(place, int)
    return PipelineError(
        f"prompt {job.prompt.id!r}, {phase}: {f'engine {place}' if is_engine else place} {reason}",
        prompt_id=job.prompt.id,
        phase=phase,
        engine_index=place if isinstance(place, int) else None,
        policy_lost=policy_lost,
    )


def _fault(completions: Sequence[Completion], asked: str, *, may_abort: bool) -> str | None:
    """What is wrong with an engine's answer to the request `asked`, if anything."""
    returned = [completion.request_id for completion in completions]
    if returned != [asked]:
        return f"returned requests {returned} for {[asked]}"
    (completion,) = completions
    tokens, log_probs = len(completion.token_ids), len(completion.log_probs)
    was_cut = completion.finish_reason == "abort"
    if was_cut and not may_abort:
        return f"aborted request {asked}"
    if tokens != log_probs or not (tokens or was_cut):
        return f"gave {tokens} tokens and {log_probs} log-probs for {asked}"
    return None
