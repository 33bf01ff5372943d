"""The judge's client: every distinct question is asked once, retried by class, never guessed.

A judgement that fails is `UNVERIFIABLE` with the reason, which leaves its response unscored. What
cannot be mended by asking again (a refused key, a judge that stays away) is a `JudgeError`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from herl_megatron.config.proxies import proxy_problem
from herl_megatron.config.rules.scoring import judge_problems
from herl_megatron.config.schema import JudgeConfig
from herl_megatron.rubrics.breaker import Breaker
from herl_megatron.rubrics.budget import Budget, BudgetSpent
from herl_megatron.rubrics.cache import JudgementCache
from herl_megatron.rubrics.endpoint import Endpoints, read_key
from herl_megatron.rubrics.failures import CallFailed, JudgeError, Refused
from herl_megatron.rubrics.judge.answers import Answer, read_answer
from herl_megatron.rubrics.judge.formats import STATEMENTS
from herl_megatron.rubrics.judge.grader_prompt import GraderPrompt, read_grader_prompt
from herl_megatron.rubrics.judge.guard import addresses_judge
from herl_megatron.rubrics.judge.questions import Question, Style, make_question
from herl_megatron.rubrics.judge.units import Unit, split_units
from herl_megatron.rubrics.judge.wording import read_template
from herl_megatron.rubrics.judge_stats import JudgeStats
from herl_megatron.rubrics.judgement import Judgement, Work
from herl_megatron.rubrics.limiter import RateLimiter
from herl_megatron.rubrics.refusals import Refusals
from herl_megatron.types import (
    Criterion,
    CriterionResult,
    Message,
    Prompt,
    Rubric,
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
    STATEMENTS,
    Prompt("probe", (Message("user", "Name a colour."),), Rubric(())),
    "Blue.",
    (Criterion("probe", "judge", description="The response names a colour."),),
)


class JudgeClient:
    """Judges criteria over HTTP; build and use it inside one running event loop.

    Raises:
        ValueError: address, key, model, template or cache cannot be used.
    """

    def __init__(self, config: JudgeConfig, budget: Budget | None = None) -> None:
        check_judge(config)
        self._config = config
        self.budget = budget or Budget(config)
        """What the judge has cost so far."""
        template = _read_prompt(config) if config.prompt else ""
        self._grader = read_grader(config)
        self._style = Style(config.evidence, config.canary, template, self._grader)
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
            probe=self._probe_in_pause,
        )
        self._refusals = Refusals(self._endpoints.addresses, self._probe)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._stats = JudgeStats(price_in=config.price_in, price_out=config.price_out)
        self._under_way: dict[str, asyncio.Task[Judgement]] = {}

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
        for index in range(len(self._endpoints.addresses)):
            before = self.budget.spent
            try:
                async for attempt in self._retrying(Work(_PROBE)):
                    with attempt:
                        await self._probe(index)
            except (JudgeError, CallFailed) as error:
                raise ValueError(
                    f"the judge {self._endpoints.name} does not work: {error}"
                ) from None
            if self._config.max_cost and self.budget.spent.cost == before.cost:
                raise ValueError(
                    f"judge.max_cost is {self._config.max_cost:g}, but the judge"
                    f" {self._endpoints.name} does not say how many tokens a call took, so nothing"
                    " would count: cap judge.max_calls"
                )

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
        """Cancel what is under way and close connections and cache; where the budget ended it,
        answers that are paid for are waited for."""
        tasks = list(self._under_way.values())
        if self.budget.refused and tasks:
            await asyncio.wait(tasks, timeout=self._config.timeout_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._breaker.close()
        await self._refusals.close()
        await self._endpoints.close()
        self.budget.save()
        if self._cache is not None:
            self._cache.close()

    async def _sampled(self, unit: Unit) -> Judgement:
        """`judge.samples` judgements as one."""
        samples = (self._shared(unit, sample) for sample in range(self._config.samples))
        return Judgement.of_all(await asyncio.gather(*samples))

    async def _shared(self, unit: Unit, sample: int) -> Judgement:
        """The judgement of an equal unit that is under way, or of a new one.

        Who stops waiting does not stop the others, nor the answer's way into the cache.
        """
        config = self._config
        style: list[object] = [config.evidence, config.canary, self._style.template]
        style.append(config.structured)
        if self._grader is not None:
            style.append([self._grader.system, dict(self._grader.users)])
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

    def _ended(self, key: str, task: asyncio.Task[Judgement]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def _judged(self, unit: Unit, key: str, sample: int) -> Judgement:
        kept = await self._cache.get(key) if self._cache is not None else None
        if kept is not None and (found := Judgement.read(kept, unit)) is not None:
            self._stats.add("cache_hits")
            return found
        work = Work(unit, first_attempt=sample * _ATTEMPTS_APART)
        async with self._slots:
            reason = await self._settle(work)
        self._stats.add("unjudged" if reason else "judged")
        grader = unit.form.grader if self._grader is not None else None
        if reason and grader is not None and grader.failed_grade is not None:
            return Judgement({}, grader.failed_grade, said=f"{reason}; counts as not usable")
        judgement = Judgement(work.verdicts, work.grade, reason)
        if self._cache is not None and not reason:
            await self._cache.put(key, judgement.dump(), replace=kept is not None)
        return judgement

    async def _settle(self, work: Work) -> str:
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
                last = start == _FRESH_STARTS or self._given_up(work)
                if not (paused and failure.again) or last:
                    return f"{failure.kind}: {failure}"
            else:
                return ""
        raise AssertionError("the last start returns")

    def _retrying(self, work: Work) -> AsyncRetrying:
        config = self._config

        enough = stop_after_attempt(config.retries + 1)

        def stop(state: RetryCallState) -> bool:
            late = work.spent_s + state.idle_for >= config.deadline_s
            return late or enough(state) or self._given_up(work)

        return AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, CallFailed) and e.again),
            stop=stop,
            wait=wait_random_exponential(config.retry_wait_s, max=_LONGEST_BACKOFF_S),
            reraise=True,
        )

    def _given_up(self, work: Work) -> bool:
        """Whether the judge has answered so often in vain that it is not asked again."""
        return work.useless > self._config.retries

    async def _ask(self, work: Work) -> None:
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
            work.useless += failure.answered  # but cut, empty or the like
            raise
        finally:
            work.spent_s += monotonic() - start
        work.verdicts.update(answer.verdicts)
        work.grade = answer.grade if answer.grade is not None else work.grade
        self._stats.add("unquoted", answer.unquoted)
        problem = self._endpoints.mask(answer.problem)  # it may name keys of the answer
        self._breaker.record(failed=answer.fault == "invalid", reason=problem)
        if answer.fault:
            work.useless += 1
            self._stats.add(f"failures_{answer.fault}")
            unread = CallFailed(answer.fault, problem)
            unread.again = question.grader is None or question.grader.asks_again
            raise unread

    async def _admission(self, tokens: int) -> None:
        """Wait until a call may be made; who waits in a pause takes a turn after it, not before,
        or all would be sent at once."""
        await self._breaker.passage()
        await self._limiter.turn(tokens)
        while self._breaker.is_paused:  # it began meanwhile
            await self._breaker.passage()
            await self._limiter.turn(tokens)

    async def _call(self, question: Question, *, attempt: int, left_s: float) -> Answer:
        """Send one question, to another address where one has gone; count what happens."""
        end = monotonic() + left_s
        for _ in self._endpoints.addresses[1:]:
            try:
                return await self._call_one(question, attempt=attempt, left_s=end - monotonic())
            except Refused as refused:
                if not refused.again:
                    raise
        return await self._call_one(question, attempt=attempt, left_s=end - monotonic())

    async def _call_one(self, question: Question, *, attempt: int, left_s: float) -> Answer:
        """The same of one address."""
        limit_s = max(min(self._config.timeout_s, left_s), 0.001)
        self._sends()
        start = monotonic()
        try:
            reply = await self._endpoints.ask(question, attempt=attempt, timeout_s=limit_s)
        except CallFailed as failure:
            self._stats.add(f"failures_{failure.kind}")
            self._spend(failure.tokens)
            self._after_failure(failure)
            if isinstance(failure, Refused):
                raise await self._settled(failure) from None
            raise
        self._stats.took(monotonic() - start)
        self._spend(reply.tokens)
        return read_answer(question, reply.text)

    def _sends(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            BudgetSpent: it would be beyond a cap; nobody else asks any more either.
        """
        try:
            self.budget.call()
        except BudgetSpent as error:
            self._breaker.end(error)
            raise
        self._stats.add("calls")

    def _spend(self, tokens: tuple[int, int]) -> None:
        self._stats.spend(tokens)
        self.budget.spend(tokens)

    def _after_failure(self, failure: CallFailed) -> None:
        """Hold or pause for what concerns every call; a refused request concerns itself alone."""
        wait_s = min(failure.retry_after_s, self._config.max_pause_s)
        if wait_s > self._config.timeout_s:
            self._breaker.trip(f"{failure}, to be asked again in {wait_s:g} s", wait_s=wait_s)
        elif wait_s:
            self._limiter.hold(wait_s)
        if failure.kind != "refused":
            self._breaker.record(failed=True, reason=f"{failure.kind}: {failure}")

    async def _settled(self, refused: Refused) -> CallFailed:
        """What a refusal means; where no address is left, nobody asks any more."""
        try:
            return await self._refusals.settle(refused)
        except JudgeError as error:
            self._breaker.end(error)
            raise

    async def _probe_in_pause(self) -> None:
        """A probe of whose turn it is; one that refuses access is left aside, or ends it."""
        try:
            await self._probe()
        except Refused as refused:
            if refused.access:
                raise self._refusals.lose(refused) from None
            raise

    async def _probe(self, index: int | None = None) -> None:
        """One small question, to the address `index` if given; raises CallFailed or JudgeError
        unless the answer is readable."""
        if held_s := self._limiter.held_s():
            await asyncio.sleep(min(held_s, self._config.timeout_s))
        question = make_question(_PROBE, [0], attempt=0, style=Style(self._config.evidence, False))
        self._sends()
        try:
            limit_s = self._config.timeout_s
            ask = self._endpoints.ask
            reply = await ask(question, attempt=0, timeout_s=limit_s, index=index)
        except CallFailed as failure:
            self._stats.add(f"failures_{failure.kind}")
            raise
        self._spend(reply.tokens)
        answer = read_answer(question, reply.text)
        # A benchmark's own grader may know no question but the benchmark's.
        if answer.fault == "invalid" and self._grader is None:
            problem = self._endpoints.mask(answer.problem)
            raise CallFailed(answer.fault, f"an answer that is not as asked for: {problem}")


def check_judge(config: JudgeConfig) -> None:
    """Look at everything that can be wrong without a request.

    Raises:
        ValueError: no address, model or key, credentials in the address, a bad template, a proxy
            that cannot be used.
    """
    if not config.base_url:
        raise ValueError("judge.base_url is empty: give the address of the judge")
    if problems := list(judge_problems(config)):
        raise ValueError("; ".join(problems))
    read_key(config)
    if problem := proxy_problem():
        raise ValueError(problem)
    if config.prompt:
        _read_prompt(config)
    read_grader(config)


def read_grader(config: JudgeConfig) -> GraderPrompt | None:
    """The benchmark's prompt that is named, if one is.

    Raises:
        ValueError: it cannot be read.
    """
    if not config.grader_prompt:
        return None
    try:
        return read_grader_prompt(Path(config.grader_prompt).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"judge.grader_prompt {config.grader_prompt!r}: {error}") from error


def _read_prompt(config: JudgeConfig) -> str:
    try:
        return read_template(Path(config.prompt).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"judge.prompt {config.prompt!r}: {error}") from error
