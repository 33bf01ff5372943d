"""The rollout stream: sample, score, revise, score (docs/architecture.md, "The stream").

Every group runs through its phases on its own: as soon as a group is complete it is scored, and its
revision requests join the engine's running batch behind the first samples that still decode. With
`rollout.streamed: false` each phase waits for all groups (the baseline schedule). Seeds come from
what is sampled, so both schedules and any arrival order give the same groups. `run_until` may stop
before all groups are complete; the others go on in a later call (`rollout.carry`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from herl_megatron.config.schema import RolloutConfig
from herl_megatron.engine import RolloutEngine
from herl_megatron.hindsight.method import Proposal
from herl_megatron.rollout.carry import GroupProgress
from herl_megatron.rollout.conversation import rollout_of
from herl_megatron.rollout.first_samples import open_first_samples
from herl_megatron.rollout.hindsight_stage import HindsightStage
from herl_megatron.rollout.pipeline_run import (
    Drafted,
    GroupJob,
    GroupScorer,
    Interrupted,
    PipelineError,
    PipelineRun,
    Tokenizer,
    all_or_none,
    failure,
)
from herl_megatron.rollout.pipeline_stats import PipelineStats, WorkClock
from herl_megatron.rubrics.group_reward import RewardedScorer
from herl_megatron.rubrics.rubric import asks_judge
from herl_megatron.types import (
    Completion,
    Prompt,
    Revision,
    Rollout,
    RolloutGroup,
    SamplingSettings,
    Score,
    ScoredGroup,
)

S = TypeVar("S")
T = TypeVar("T")

__all__ = ["PipelineError", "RolloutPipeline"]


class RolloutPipeline:
    """Samples, scores and revises the groups of a step.

    Training passes its `hindsight`; evaluation passes None with its own `sampling`, `group_size`
    and `seed` (the first two default to those of `rollout`). The scorer hears of each response that
    needs a judge as soon as it is complete: a group waits for its longest response, and the judge
    would have to catch up on all others then. `stats` describes the last finished run.

    Raises:
        ValueError: without an engine; `rollout.function` cannot be used.
    """

    def __init__(
        self,
        engines: Sequence[RolloutEngine],
        scorer: GroupScorer,
        tokenizer: Tokenizer,
        rollout: RolloutConfig,
        hindsight: HindsightStage | None,
        *,
        seed: int,
        group_size: int | None = None,
        sampling: SamplingSettings | None = None,
    ) -> None:
        if not engines:
            raise ValueError("the rollout pipeline has no engine: set rollout.replicas >= 1")
        self._engines = tuple(engines)
        self._scorer = scorer
        self._tokenizer = tokenizer
        self._rollout = rollout
        self._hindsight = hindsight
        self._seed = seed
        self._group_size = rollout.group_size if group_size is None else group_size
        self._first_samples = open_first_samples(
            rollout,
            rollout.sampling() if sampling is None else sampling,
            tokenizer,
            group_size=self._group_size,
            seed=seed,
        )
        self.stats: PipelineStats | None = None

    async def run(
        self,
        prompts: Sequence[Prompt],
        step: int,
        *,
        on_group: Callable[[ScoredGroup], None] | None = None,
    ) -> list[ScoredGroup]:
        """The groups of `prompts`, in their order. `on_group` hears of each as it finishes.

        Raises:
            PipelineError: an engine or the scorer failed or took longer than `rollout.timeout_s`;
                everything else is cancelled first, and finished groups are on the exception.
            ValueError: a prompt that hindsight could not extend, before anything is sampled.
        """
        return await self.run_jobs(self.jobs(prompts, step), on_group=on_group)

    async def run_jobs(
        self, jobs: Sequence[GroupJob], *, on_group: Callable[[ScoredGroup], None] | None = None
    ) -> list[ScoredGroup]:
        """The groups of `jobs`, in their order; errors and `on_group` as in `run`."""
        run = self._open_run(on_group)
        schedule = self._stream if self._rollout.streamed else self._with_barriers
        return await self._finish(run, schedule(run, jobs))

    async def run_until(
        self, jobs: Sequence[GroupJob], enough: Callable[[Collection[GroupJob]], bool]
    ) -> list[ScoredGroup | None]:
        """Run `jobs` as a stream until those that are complete are `enough`, then cut the others.

        Returns one group per job, None for those that were cut: what they have is in their
        `progress`, from which a later call goes on. Errors as in `run`.
        """
        assert not self._rollout.function, "a conversation cannot be cut: the rules refuse partial"
        run = self._open_run(None)
        return await self._finish(run, self._stream_until(run, jobs, enough))

    def _open_run(self, on_group: Callable[[ScoredGroup], None] | None) -> PipelineRun:
        return PipelineRun(self._rollout.timeout_s, self._engines, WorkClock(), on_group)

    async def _finish(self, run: PipelineRun, groups: Coroutine[Any, Any, list[T]]) -> list[T]:
        try:
            finished = await groups
        except BaseException as error:
            await run.abort_open_requests()
            if isinstance(error, PipelineError):
                error.finished = run.finished_in_order()
            raise
        self.stats = run.clock.stats(sum(group is not None for group in finished))
        return finished

    def jobs(self, prompts: Sequence[Prompt], step: int) -> list[GroupJob]:
        """One job per prompt drawn for `step`.

        A prompt drawn twice in one step goes on counting its samples: other seeds, other ids.
        Raises ValueError for a prompt that hindsight could not extend.
        """
        seen: dict[str, int] = {}
        jobs = []
        for position, prompt in enumerate(prompts):
            first_index = seen.get(prompt.id, 0)
            seen[prompt.id] = first_index + self._group_size
            job = self.job(prompt, step=step, position=position, first_index=first_index)
            jobs.append(job)
        return jobs

    def job(
        self,
        prompt: Prompt,
        *,
        step: int,
        position: int,
        first_index: int,
        progress: GroupProgress | None = None,
    ) -> GroupJob:
        """One job, whose first sample is number `first_index` of the prompt's in that step.

        progress: what a checkpoint holds of it; None from the beginning.
        """
        if self._hindsight is not None:
            self._hindsight.check_prompt(prompt)
        return GroupJob(
            step=step,
            position=position,
            prompt=prompt,
            prompt_token_ids=self._tokenizer.prompt_ids(prompt.messages),
            # In turn, because a step ends with the busiest engine; one for the whole group, whose
            # prompt is in its prefix cache.
            engine_index=(step + position) % len(self._engines),
            first_index=first_index,
            progress=GroupProgress() if progress is None else progress,
        )

    async def _through(self, run: PipelineRun, job: GroupJob) -> ScoredGroup:
        scored = await self._score(run, job, await self._sample(run, job))
        return await self._score_revisions(run, job, await self._revise(run, job, scored))

    async def _stream(self, run: PipelineRun, jobs: Sequence[GroupJob]) -> list[ScoredGroup]:
        return await all_or_none(self._through(run, job) for job in jobs)

    async def _stream_until(
        self,
        run: PipelineRun,
        jobs: Sequence[GroupJob],
        enough: Callable[[Collection[GroupJob]], bool],
    ) -> list[ScoredGroup | None]:
        complete: set[GroupJob] = set()
        cut = asyncio.Event()

        async def through(job: GroupJob) -> ScoredGroup | None:
            try:
                group = await self._through(run, job)
            except Interrupted:
                return None
            complete.add(job)
            if enough(complete):
                cut.set()
            return group

        async def cutter() -> None:
            await cut.wait()
            await run.cut()

        cutting = asyncio.create_task(cutter())
        try:
            return await all_or_none(through(job) for job in jobs)
        finally:
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)

    async def _with_barriers(self, run: PipelineRun, jobs: Sequence[GroupJob]) -> list[ScoredGroup]:
        async def phase(
            function: Callable[[PipelineRun, GroupJob, S], Coroutine[Any, Any, T]],
            inputs: Sequence[S],
        ) -> list[T]:
            return await all_or_none(function(run, j, i) for j, i in zip(jobs, inputs, strict=True))

        groups = await all_or_none(self._sample(run, job) for job in jobs)
        scored = await phase(self._score, groups)
        drafted = await phase(self._revise, scored)
        return await phase(self._score_revisions, drafted)

    async def _sample(self, run: PipelineRun, job: GroupJob) -> RolloutGroup:
        completions = await self._first_samples.draw(run, job, self._arrived(job))
        return RolloutGroup(job.prompt, job.prompt_token_ids, self._rollouts(completions))

    def _arrived(self, job: GroupJob) -> Callable[[Completion], None]:
        """What hears of each complete response: the judge, while others of the group decode."""
        judged = self._rollout.streamed and asks_judge(job.prompt.rubric)

        def arrived(response: Completion) -> None:
            if judged:
                text = rollout_of(0, response, self._tokenizer).text
                self._scorer.start_judging(job.prompt, text)

        return arrived

    async def _score(self, run: PipelineRun, job: GroupJob, group: RolloutGroup) -> ScoredGroup:
        texts = [rollout.text for rollout in group.rollouts]
        return ScoredGroup(group, await run.score(job, self._scorer, texts, "scoring"))

    async def _revise(self, run: PipelineRun, job: GroupJob, scored: ScoredGroup) -> Drafted:
        """Sample the revisions that the hindsight method asks for; its replays need no engine."""
        if self._hindsight is None:
            return Drafted(scored)
        proposal = self._propose(self._hindsight, job, scored)
        scored = replace(
            scored,
            experiences_too_long=proposal.too_long,
            replays=proposal.replays,
            replays_impossible=proposal.impossible,
        )
        if not proposal.experiences:
            return Drafted(scored)
        requests = self._hindsight.requests(job, proposal, run_seed=self._seed)
        completions = await run.generate(job, requests, "revisions", arrived=self._arrived(job))
        return Drafted(scored, proposal.experiences, self._rollouts(completions))

    def _propose(self, stage: HindsightStage, job: GroupJob, scored: ScoredGroup) -> Proposal:
        try:
            return stage.propose(job, scored, self._tokenizer, run_seed=self._seed)
        except Exception as error:  # the method may be a user's own, and raise anything
            raise failure(job, "hindsight", f"hindsight.method {stage.name}", error) from error

    async def _score_revisions(
        self, run: PipelineRun, job: GroupJob, drafted: Drafted
    ) -> ScoredGroup:
        texts = [rollout.text for rollout in drafted.revisions]
        scores: tuple[Score, ...] = ()
        if texts:
            drafts = [experience.rollout_index for experience in drafted.experiences]
            scorer = self._scorer
            if isinstance(scorer, RewardedScorer):
                scorer = scorer.of_revisions(drafted.scored, drafts)
            scores = await run.score(job, scorer, texts, "revision scoring")
        revisions = tuple(
            Revision(experience, rollout, score)
            for experience, rollout, score in zip(
                drafted.experiences, drafted.revisions, scores, strict=True
            )
        )
        return run.finish(job, replace(drafted.scored, revisions=revisions))

    def _rollouts(self, completions: Sequence[Completion]) -> tuple[Rollout, ...]:
        return tuple(
            rollout_of(index, completion, self._tokenizer)
            for index, completion in enumerate(completions)
        )
