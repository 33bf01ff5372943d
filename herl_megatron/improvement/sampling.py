"""Draws self-improvement trajectories and best-of-N samples from the engines, each by itself.

First samples have the seeds of an evaluation of the same weights (`herl eval`), so round 0 is that
evaluation. Trajectories do not wait for each other: one may be in its last round while another
still decodes its first sample.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from herl_megatron.config.reference_compat import is_resolved
from herl_megatron.config.schema import Config
from herl_megatron.engine import RolloutEngine
from herl_megatron.hindsight.experience import revision_prompt
from herl_megatron.hindsight.prompt_file import revision_form
from herl_megatron.improvement.trajectory import (
    Attempt,
    Trajectory,
    at_least_tokens,
    best_attempt,
    is_done,
)
from herl_megatron.rollout.carry import GeneratePhase
from herl_megatron.rollout.pipeline_run import (
    GroupJob,
    GroupScorer,
    PipelineRun,
    Tokenizer,
    all_or_none,
)
from herl_megatron.rollout.pipeline_stats import WorkClock
from herl_megatron.rubrics.rubric import answer_part
from herl_megatron.seeds import request_seed
from herl_megatron.types import GenerateRequest, IntArray, Prompt, SamplingSettings, Scored

T = TypeVar("T")
TrajectoryKey = tuple[str, int]
"""Prompt id and number of the trajectory."""
MAX_SAMPLES_FACTOR = 4
"""Best-of-N draws at most this many times the samples of a trajectory to reach its tokens."""


@dataclass(frozen=True)
class _Place:
    """One trajectory: its prompt, the prompt's place in the file, and which of the prompt's."""

    prompt: Prompt
    position: int
    index: int

    @property
    def key(self) -> TrajectoryKey:
        return self.prompt.id, self.index


class Improver:
    """Trajectories and baselines of a configuration (`eval`, `improve`, `hindsight` prompts).

    on_trajectory, on_sample: hear of each as soon as it is complete, so that it can be kept.
    """

    def __init__(
        self,
        engines: Sequence[RolloutEngine],
        scorer: GroupScorer,
        tokenizer: Tokenizer,
        config: Config,
        *,
        on_trajectory: Callable[[Trajectory], None],
        on_sample: Callable[[TrajectoryKey, Attempt], None],
    ) -> None:
        self._engines = tuple(engines)
        self._scorer = scorer
        self._tokenizer = tokenizer
        assert is_resolved(config.hindsight), "reference_compat is resolved by prepare"
        self._config = config
        self._on_trajectory = on_trajectory
        self._on_sample = on_sample
        self._form = revision_form(config.hindsight)
        self._run = PipelineRun(config.rollout.timeout_s, self._engines, WorkClock(), None)

    async def improve(
        self, prompts: Sequence[Prompt], known: Mapping[TrajectoryKey, Trajectory]
    ) -> list[Trajectory]:
        """`eval.samples_per_prompt` trajectories of every prompt, in order; `known` ones as given.

        Raises:
            PipelineError: as `RolloutPipeline.run`; finished trajectories were handed over.
        """
        places = self._places(prompts)
        return await self._together(
            self._given(known[place.key]) if place.key in known else self._trajectory(place)
            for place in places
        )

    async def sample_baseline(
        self,
        prompts: Sequence[Prompt],
        trajectories: Sequence[Trajectory],
        known: Mapping[TrajectoryKey, Sequence[Attempt]],
    ) -> list[list[Attempt]]:
        """Best-of-N samples of every trajectory's prompt, its own first sample first.

        As many as a trajectory may draw, then more until all have sampled as many tokens as the
        trajectories together (at most `MAX_SAMPLES_FACTOR` times as many samples); none more where
        the best one misses nothing. `known` samples are taken as given. Raises as `improve`.
        """
        places = self._places(prompts)
        samples = [
            [trajectory.attempts[0], *known.get(place.key, ())]
            for place, trajectory in zip(places, trajectories, strict=True)
        ]
        tokens = sum(attempt.tokens for t in trajectories for attempt in t.attempts)
        n = 1 + self._config.improve.rounds
        most = MAX_SAMPLES_FACTOR * n
        while True:
            await self._together(
                self._sample_to(place, drawn, n)
                for place, drawn in zip(places, samples, strict=True)
            )
            enough = at_least_tokens(samples, tokens).outcome.tokens >= tokens
            if enough or n == most or all(map(is_done, samples)):
                return samples
            n += 1

    def _places(self, prompts: Sequence[Prompt]) -> list[_Place]:
        return [
            _Place(prompt, position, index)
            for position, prompt in enumerate(prompts)
            for index in range(self._config.eval.samples_per_prompt)
        ]

    async def _given(self, trajectory: Trajectory) -> Trajectory:
        return trajectory

    async def _trajectory(self, place: _Place) -> Trajectory:
        attempts = [await self._first_sample(place, 0)]
        for number in range(1, self._config.improve.rounds + 1):
            if is_done(attempts):
                break
            attempts.append(await self._next(place, attempts, number))
        trajectory = Trajectory(place.prompt.id, place.index, tuple(attempts))
        self._on_trajectory(trajectory)
        return trajectory

    async def _sample_to(self, place: _Place, drawn: list[Attempt], n: int) -> None:
        while len(drawn) < n and not is_done(drawn):
            sample = await self._first_sample(place, len(drawn))
            drawn.append(sample)
            self._on_sample(place.key, sample)

    async def _next(self, place: _Place, attempts: Sequence[Attempt], number: int) -> Attempt:
        """A revision of the best attempt, or a fresh sample where none can be revised: nothing is
        scored yet, or its revision prompt is longer than `data.max_experience_tokens`."""
        best = best_attempt(attempts)
        if best is None:
            return await self._first_sample(place, number)
        score, hindsight = attempts[best].score, self._config.hindsight
        assert isinstance(score, Scored), f"attempt {best} is the best without a score"
        draft = answer_part(attempts[best].text, self._config.scoring.answer_after) or ""
        _, ids = revision_prompt(place.prompt, draft, score, hindsight, self._tokenizer, self._form)
        if len(ids) > self._config.data.max_experience_tokens:
            return await self._first_sample(place, number)
        return await self._attempt(place, number, ids, best)

    async def _first_sample(self, place: _Place, number: int) -> Attempt:
        ids = self._tokenizer.prompt_ids(place.prompt.messages)
        return await self._attempt(place, number, ids, None)

    async def _attempt(
        self, place: _Place, number: int, ids: IntArray, parent: int | None
    ) -> Attempt:
        phase: GeneratePhase = "first samples" if parent is None else "revisions"
        job = GroupJob(
            step=number,
            position=place.position,
            prompt=place.prompt,
            prompt_token_ids=ids,
            engine_index=place.position % len(self._engines),
            first_index=place.index,
        )
        request = GenerateRequest(
            request_id=f"prompt{place.position}-{place.index}-{phase[:-1]} {number}",
            prompt_token_ids=ids,
            sampling=self._sampling(revises=parent is not None),
            seed=self._seed(place, number, revises=parent is not None),
        )
        (completion,) = await self._run.generate(job, [request], phase)
        text = self._tokenizer.decode(completion.token_ids)
        (score,) = await self._run.score(job, self._scorer, [text], "scoring")
        return Attempt(
            round=number,
            parent=parent,
            text=text,
            tokens=len(completion.token_ids),
            prompt_tokens=len(ids),
            finish_reason=completion.finish_reason,
            score=score,
        )

    def _seed(self, place: _Place, number: int, *, revises: bool) -> int:
        seed, prompt_id = self._config.eval.seed, place.prompt.id
        if revises:
            return request_seed(
                seed, step=number, prompt_id=prompt_id, kind="revision", index=place.index
            )
        index = place.index + number * self._config.eval.samples_per_prompt
        return request_seed(seed, step=0, prompt_id=prompt_id, kind="rollout", index=index)

    def _sampling(self, *, revises: bool) -> SamplingSettings:
        evaluation = self._config.eval
        return SamplingSettings(
            temperature=self._config.improve.temperature if revises else evaluation.temperature,
            top_p=evaluation.top_p,
            max_tokens=self._config.rollout.max_response_tokens,
        )

    async def _together(self, coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        try:
            return await all_or_none(coroutines)
        except BaseException:
            await self._run.abort_open_requests()
            raise
