"""The judge's client: every distinct question is asked once, retried by class, never guessed.

A judgement that fails is `UNVERIFIABLE` with the reason, which leaves its response unscored. What
cannot be mended by asking again (a refused key, a judge that stays away) is a `JudgeError`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from herl_megatron.config.judge_rules import judge_problems
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.aggregations import SCALES, graded_result
from herl_megatron.rubrics.breaker import Breaker
from herl_megatron.rubrics.cache import JudgementCache
from herl_megatron.rubrics.endpoint import RETRIED, CallFailed, Endpoints, JudgeError, read_key
from herl_megatron.rubrics.judge.answers import Answer, read_answer
from herl_megatron.rubrics.judge.guard import addresses_judge
from herl_megatron.rubrics.judge.prompts import read_template
from herl_megatron.rubrics.judge.questions import Question, Style, make_question
from herl_megatron.rubrics.judge.units import Unit, split_units
from herl_megatron.rubrics.judge_stats import JudgeStats
from herl_megatron.rubrics.limiter import RateLimiter
from herl_megatron.types import (
    Criterion,
    CriterionResult,
    JudgeFormat,
    Message,
    Prompt,
    Rubric,
    Verdict,
)

_log = logging.getLogger(__name__)
_FRESH_STARTS = 3
"""How often a unit that failed while a pause began is taken up again with all its attempts."""
_ATTEMPTS_APART = 1000
"""Between the numbers of one sample's calls and the next's."""
_CHARACTERS_PER_TOKEN = 4
_ANSWER_TOKENS = 32  # per entry, for the estimate
_LONGEST_BACKOFF_S = 30.0
_PROBE = Unit(
    JudgeFormat.STATEMENTS,
    Prompt("probe", (Message("user", "Name a colour."),), Rubric(())),
    "Blue.",
    (Criterion("probe", "judge", description="The response names a colour."),),
)


@dataclass(eq=False)
class _Work:
    """One unit under way. `verdicts` by position, kept over attempts; `spent_s` is active time."""

    unit: Unit
    first_attempt: int = 0
    """Number of its first call, from which order, markers and seed come."""
    verdicts: dict[int, bool] = field(default_factory=dict)
    grade: int | None = None
    calls: int = 0
    useless: int = 0
    """Answers that left something missing: the judge was there, so no pause gives them back."""
    spent_s: float = 0.0

    @property
    def missing(self) -> list[int]:
        """Positions without a verdict."""
        if self.unit.form in SCALES:
            return [] if self.grade is not None else list(range(len(self.unit.criteria)))
        return [i for i in range(len(self.unit.criteria)) if i not in self.verdicts]


@dataclass(frozen=True)
class _Judgement:
    """Verdicts and grade of one unit, and why something is missing (else empty)."""

    verdicts: dict[int, bool]
    grade: float | None
    reason: str = ""

    @classmethod
    def of_all(cls, samples: Sequence[_Judgement]) -> _Judgement:
        """What several judgements of one unit say together: the majority, or the mean grade."""
        if len(samples) == 1:
            return samples[0]
        if failed := [sample for sample in samples if sample.reason]:
            return cls({}, None, failed[0].reason)
        verdicts = {
            position: 2 * sum(sample.verdicts[position] for sample in samples) > len(samples)
            for position in samples[0].verdicts
        }
        grades = [sample.grade for sample in samples if sample.grade is not None]
        return cls(verdicts, sum(grades) / len(grades) if grades else None)

    def result(self, unit: Unit, position: int) -> CriterionResult:
        """What it says about one criterion; ids may differ between units that share it."""
        name = unit.criteria[position].id
        if self.grade is not None:
            return graded_result(name, unit.form, self.grade)
        if position not in self.verdicts:
            return CriterionResult(name, Verdict.UNVERIFIABLE, f"judge: {self.reason}")
        followed = self.verdicts[position]
        return CriterionResult(name, Verdict.FOLLOWED if followed else Verdict.NOT_FOLLOWED)


class JudgeClient:
    """Judges criteria over HTTP; build and use it inside one running event loop.

    Raises:
        ValueError: address, key, model, template or cache cannot be used.
    """

    def __init__(self, config: JudgeConfig) -> None:
        check_judge(config)
        self._config = config
        template = _read_prompt(config) if config.prompt else ""
        self._style = Style(config.evidence, config.canary, template)
        self._endpoints = Endpoints(config)
        self._cache = JudgementCache(Path(config.cache)) if config.cache else None
        self._limiter = RateLimiter(
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
        )
        self._breaker = Breaker(
            window=config.failure_window,
            share=config.failure_share,
            first_wait_s=config.retry_wait_s,
            max_pause_s=config.max_pause_s,
            name=self._endpoints.name,
            probe=self._probe,
        )
        self._slots = asyncio.Semaphore(config.concurrency)
        self._stats = JudgeStats(price_in=config.price_in, price_out=config.price_out)
        self._under_way: dict[str, asyncio.Task[_Judgement]] = {}

    async def judge(
        self, prompt: Prompt, response: str, criteria: Sequence[Criterion]
    ) -> list[CriterionResult]:
        """One result per criterion, in order, about the statement as written.

        Raises:
            JudgeError: the judge cannot be used any more, or stayed away too long.
        """
        if not criteria:
            return []
        self._stats.add("addressed", addresses_judge(response))
        units = split_units(prompt, response, criteria)
        judgements = await asyncio.gather(*(self._sampled(unit) for unit in units))
        return [
            judgement.result(unit, position)
            for unit, judgement in zip(units, judgements, strict=True)
            for position in range(len(unit.criteria))
        ]

    async def preflight(self) -> None:
        """Ask every address one small question, before anything expensive starts.

        Raises:
            ValueError: one refuses, does not answer in time or not in JSON.
        """
        for index in range(len(self._endpoints.urls)):
            try:
                async for attempt in self._retrying(_Work(_PROBE)):
                    with attempt:
                        await self._probe(index)
            except (JudgeError, CallFailed) as error:
                raise ValueError(
                    f"the judge {self._endpoints.name} does not work: {error}"
                ) from None

    def stats(self) -> dict[str, float]:
        """Totals since the start (`JudgeStats.totals`)."""
        return self._stats.totals() | {"pauses": float(self._breaker.trips)}

    def metrics(self) -> dict[str, float]:
        """`judge/...` since the last call."""
        return self._stats.metrics(paused_s=self._breaker.paused_s(), pauses=self._breaker.trips)

    def paused_s(self) -> float:
        """Seconds that scoring has been paused so far."""
        return self._breaker.paused_s()

    async def close(self) -> None:
        """Cancel what is under way and close connections and cache."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._breaker.close()
        await self._endpoints.close()
        if self._cache is not None:
            self._cache.close()

    async def _sampled(self, unit: Unit) -> _Judgement:
        """`judge.samples` judgements as one."""
        samples = (self._shared(unit, sample) for sample in range(self._config.samples))
        return _Judgement.of_all(await asyncio.gather(*samples))

    async def _shared(self, unit: Unit, sample: int) -> _Judgement:
        """The judgement of an equal unit that is under way, or of a new one.

        Who stops waiting does not stop the others, nor the answer's way into the cache.
        """
        config = self._config
        style = [config.evidence, config.canary, self._style.template, config.structured]
        sampling = [config.model, config.temperature, config.max_tokens, config.extra_body]
        key = unit.content_key(style, sampling, *([sample] if sample else []))
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._judged(unit, key, sample))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        else:
            self._stats.add("shared")
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[_Judgement]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def _judged(self, unit: Unit, key: str, sample: int) -> _Judgement:
        if self._cache is not None and (kept := await self._cache.get(key)) is not None:
            self._stats.add("cache_hits")
            return _load(kept)
        work = _Work(unit, first_attempt=sample * _ATTEMPTS_APART)
        async with self._slots:
            reason = await self._settle(work)
        self._stats.add("unjudged" if reason else "judged")
        judgement = _Judgement(work.verdicts, work.grade, reason)
        if self._cache is not None and not reason:
            await self._cache.put(key, _dump(judgement))
        return judgement

    async def _settle(self, work: _Work) -> str:
        """Ask until nothing is missing; the reason if that cannot be reached, else empty.

        Attempts on the way into a pause do not count, unless they were answered: after it the unit
        starts anew.
        """
        for start in range(_FRESH_STARTS + 1):
            trips, work.spent_s = self._breaker.trips, 0.0
            try:
                async for attempt in self._retrying(work):
                    with attempt:
                        await self._ask(work)
            except CallFailed as failure:
                paused = self._breaker.trips > trips
                if not paused or start == _FRESH_STARTS or self._given_up(work):
                    return f"{failure.kind}: {failure}"
            else:
                return ""
        raise AssertionError("the last start returns")

    def _retrying(self, work: _Work) -> AsyncRetrying:
        config = self._config

        enough = stop_after_attempt(config.retries + 1)

        def stop(state: RetryCallState) -> bool:
            late = work.spent_s + state.idle_for >= config.deadline_s
            return late or enough(state) or self._given_up(work)

        return AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, CallFailed) and e.kind in RETRIED),
            stop=stop,
            wait=wait_random_exponential(config.retry_wait_s, max=_LONGEST_BACKOFF_S),
            reraise=True,
        )

    def _given_up(self, work: _Work) -> bool:
        """Whether the judge has answered so often in vain that it is not asked again."""
        return work.useless > self._config.retries

    async def _ask(self, work: _Work) -> None:
        """One call for what is missing; raises CallFailed unless nothing is missing after it."""
        attempt = work.first_attempt + work.calls
        question = make_question(work.unit, work.missing, attempt=attempt, style=self._style)
        characters = sum(len(message.content) for message in question.messages)
        entries = len(question.schema["properties"])
        await self._admission(characters // _CHARACTERS_PER_TOKEN + _ANSWER_TOKENS * entries)
        self._stats.add("retries", work.calls > 0)
        work.calls += 1
        start = monotonic()
        try:
            left_s = self._config.deadline_s - work.spent_s
            answer = await self._call(question, attempt=attempt, left_s=left_s)
        except CallFailed as failure:
            work.useless += any(failure.tokens)  # the model did answer, but cut or empty
            raise
        finally:
            work.spent_s += monotonic() - start
        work.verdicts.update(answer.verdicts)
        work.grade = answer.grade if answer.grade is not None else work.grade
        self._stats.add("unquoted", answer.unquoted)
        self._breaker.record(failed=answer.fault == "invalid", reason=answer.problem)
        if answer.fault:
            work.useless += 1
            self._stats.add(f"failures_{answer.fault}")
            raise CallFailed(answer.fault, answer.problem)

    async def _admission(self, tokens: int) -> None:
        """Wait until a call may be made; who waits in a pause takes a turn after it, not before,
        or all would be sent at once."""
        await self._breaker.passage()
        await self._limiter.turn(tokens)
        while self._breaker.is_paused:  # it began meanwhile
            await self._breaker.passage()
            await self._limiter.turn(tokens)

    async def _call(self, question: Question, *, attempt: int, left_s: float) -> Answer:
        """Send one question; count what happens."""
        limit_s = max(min(self._config.timeout_s, left_s), 0.001)
        self._stats.add("calls")
        start = monotonic()
        try:
            reply = await self._endpoints.ask(question, attempt=attempt, timeout_s=limit_s)
        except CallFailed as failure:
            self._stats.add(f"failures_{failure.kind}")
            self._stats.spend(failure.tokens)
            self._after_failure(failure)
            raise
        self._stats.took(monotonic() - start)
        self._stats.spend(reply.tokens)
        return read_answer(question, reply.text)

    def _after_failure(self, failure: CallFailed) -> None:
        """Hold or pause for what concerns every call; a refused request concerns itself alone."""
        wait_s = min(failure.retry_after_s, self._config.max_pause_s)
        if wait_s > self._config.timeout_s:
            self._breaker.trip(f"{failure}, to be asked again in {wait_s:g} s", wait_s=wait_s)
        elif wait_s:
            self._limiter.hold(wait_s)
        if failure.kind != "refused":
            self._breaker.record(failed=True, reason=f"{failure.kind}: {failure}")

    async def _probe(self, index: int | None = None) -> None:
        """One small question, to the address `index` if given; raises CallFailed or JudgeError
        unless the answer is readable."""
        if held_s := self._limiter.held_s():
            await asyncio.sleep(min(held_s, self._config.timeout_s))
        question = make_question(_PROBE, [0], attempt=0, style=Style(self._config.evidence, False))
        self._stats.add("calls")
        try:
            limit_s = self._config.timeout_s
            ask = self._endpoints.ask
            reply = await ask(question, attempt=0, timeout_s=limit_s, index=index)
        except CallFailed as failure:
            self._stats.add(f"failures_{failure.kind}")
            raise
        self._stats.spend(reply.tokens)
        answer = read_answer(question, reply.text)
        if answer.fault == "invalid":
            raise CallFailed(answer.fault, f"an answer that is not as asked for: {answer.problem}")


def check_judge(config: JudgeConfig) -> None:
    """Look at everything that can be wrong without a request.

    Raises:
        ValueError: no address, model or key, credentials in the address, a bad template.
    """
    if not config.base_url:
        raise ValueError("judge.base_url is empty: give the address of the judge")
    if problems := list(judge_problems(config)):
        raise ValueError("; ".join(problems))
    read_key(config)
    if config.prompt:
        _read_prompt(config)


def _read_prompt(config: JudgeConfig) -> str:
    try:
        return read_template(Path(config.prompt).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"judge.prompt {config.prompt!r}: {error}") from error


def _dump(judgement: _Judgement) -> str:
    verdicts = [judgement.verdicts[i] for i in sorted(judgement.verdicts)]
    return json.dumps({"verdicts": verdicts, "grade": judgement.grade})


def _load(text: str) -> _Judgement:
    kept = json.loads(text)
    return _Judgement(dict(enumerate(kept["verdicts"])), kept["grade"])
