"""Rubric scoring spread over Ray: bounded, in order, and never a number for a failure.

One thread of the driver drives one worker process and waits for it with a time limit, so that time
spent queueing never counts as a time-out. A call to a worker costs about a millisecond, as much as
scoring a short group does; so a call takes as many of the waiting groups as keep a worker busy for
`_CALL_S`, but no more than its share of them. If such a call fails, its groups are scored one by
one, so that only the group that is to blame pays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from herl_megatron.config.schema import ScoringConfig
from herl_megatron.rubrics.checks.isolated.modules import CheckModuleError
from herl_megatron.rubrics.checks.isolated.wire import CheckLimits
from herl_megatron.rubrics.checks.local import Mode
from herl_megatron.rubrics.checks.registry import (
    load_check_modules,
    prepare,
)
from herl_megatron.rubrics.worker import needs_of, score_texts
from herl_megatron.types import Prompt, Rubric, Score, Unscored, Verdict

_log = logging.getLogger(__name__)
_ATTEMPTS = 2
"""A group that crashes this many workers is isolated."""
_CALL_S = 0.05
_START_TIMEOUT_S = 120.0
_METRICS = (
    "left_out_criteria",
    "check_failures",
    "worker_crashes",
    "group_timeouts",
    "isolated_groups",
)


@dataclass(frozen=True, eq=False)
class _Task:
    """A group that waits for its scores."""

    prompt: Prompt
    texts: list[str]
    mode: Mode
    scores: Future[list[Score]] = field(default_factory=Future)


class _CallFailed(Exception):
    """A call whose worker died, raised or took too long; the worker has been replaced."""

    def __init__(self, *, crashed: bool, reason: str) -> None:
        super().__init__(reason)
        self.crashed = crashed


@ray.remote(num_cpus=0, max_restarts=0)
class _Worker:
    """One scoring process."""

    def __init__(self, config: ScoringConfig, folder: str) -> None:
        load_check_modules(config.check_modules, folder=folder, limits=_limits(config))
        self._check_timeout_s = config.check_timeout_s

    def ready(self, needed: Sequence[str] = ()) -> bool:
        """Answers once the process is up, its checks are imported and what they need is ready."""
        prepare(needed)
        return True

    def score(self, groups: Sequence[tuple[Rubric, Sequence[str], Mode]]) -> list[list[Score]]:
        """Per group one score per text, in order."""
        return [
            score_texts(rubric, texts, check_timeout_s=self._check_timeout_s, mode=mode)
            for rubric, texts, mode in groups
        ]


class ScoringPool:
    """`scoring.workers` processes that score groups; Ray must be running.

    A worker that dies is replaced and its group scored once more; a group that crashes two
    workers, or takes longer than `scoring.timeout_s`, comes back as `Unscored` with the reason.
    Raises ValueError if a worker cannot start.
    """

    def __init__(self, config: ScoringConfig, *, mode: Mode = "strict") -> None:
        assert ray.is_initialized(), "start Ray before the scoring pool"
        self._folder = os.getcwd()  # Workers have another, and modules may lie in ours.
        load_check_modules(config.check_modules, folder=self._folder, limits=_limits(config))
        self._config = config
        self._mode = mode
        self._closed = False
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._left_out: set[tuple[str, str]] = set()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._workers: set[Any] = set()
        workers = [self._new_worker() for _ in range(config.workers)]
        for worker in workers:
            self.wait_until_ready(worker)
        for worker in workers:
            lane = _Lane(self, worker)
            threading.Thread(target=lane.serve, name="scoring", daemon=True).start()

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order; `texts` are the group's decoded responses."""
        return await self._put(_Task(prompt, list(texts), self._mode))

    async def score_loosely(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """As `score_group` in the mode `loose`, whatever the pool's own is."""
        return await self._put(_Task(prompt, list(texts), "loose"))

    async def _put(self, task: _Task) -> list[Score]:
        assert not self._closed, "the scoring pool was shut down"
        self._tasks.put(task)
        return await asyncio.wrap_future(task.scores)

    def stats(self) -> dict[str, int]:
        """Counts since the start.

        groups, responses; unscored responses; left_out_criteria (per group scored, not verifiable
        for any response); check_failures (a time-out, an error or no bool on one response);
        worker_crashes, group_timeouts, isolated_groups.
        """
        with self._lock:
            return {
                name: self._counts[name] for name in ("groups", "responses", "unscored", *_METRICS)
            }

    def metrics(self) -> dict[str, float]:
        """`scoring/...` counts (see `stats`) since the last call; zeros are there too."""
        with self._lock:
            new = {f"scoring/{n}": float(self._counts[n] - self._reported[n]) for n in _METRICS}
            self._reported = Counter(self._counts)
        return new

    def shutdown(self) -> None:
        """Stop threads and worker processes; groups still waiting are cancelled."""
        self._stop(None)

    def _stop(self, error: ValueError | None) -> None:
        """End the pool; `error` goes to the groups that still wait."""
        self._closed = True
        for task in self.take_waiting(self._tasks.qsize()):
            if error is None:
                task.scores.cancel()
            elif task.scores.set_running_or_notify_cancel():
                task.scores.set_exception(error)
        for _ in range(self._config.workers):
            self._tasks.put(None)
        with self._lock:
            workers, self._workers = self._workers, set()
        for worker in workers:
            ray.kill(worker)

    def is_closed(self) -> bool:
        """Whether `shutdown` was called."""
        return self._closed

    @property
    def timeout_s(self) -> float:
        """Longest wait for the scores of a call."""
        return self._config.timeout_s

    def wait_for_one(self) -> _Task | None:
        """The next group, None after `shutdown`."""
        return self._tasks.get()

    def take_waiting(self, most: int) -> list[_Task]:
        """Up to `most` of the groups that wait, leaving the other workers their share."""
        share = self._tasks.qsize() if self._closed else self._tasks.qsize() // self._config.workers
        taken: list[_Task] = []
        while len(taken) < min(most, share):
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is None:
                self._tasks.put(None)  # another lane's end
                break
            taken.append(task)
        return taken

    def _new_worker(self) -> Any:
        actor: Any = _Worker  # Ray gives the class its `remote`.
        worker = actor.remote(self._config, self._folder)
        with self._lock:
            self._workers.add(worker)
        return worker

    def replace(self, worker: Any) -> Any:
        """A new worker, started: its start must not count as scoring time.

        After `shutdown` it is the dead one, which is asked nothing any more.
        """
        if self._closed:
            return worker
        ray.kill(worker)
        with self._lock:
            self._workers.discard(worker)
        replacement = self._new_worker()
        self.wait_until_ready(replacement)
        return replacement

    def wait_until_ready(self, worker: Any, needed: Sequence[str] = ()) -> None:
        """Wait for a worker's start and for what its checks need, as long as both may take."""
        try:
            ray.get(worker.ready.remote(needed), timeout=_START_TIMEOUT_S)
        except (GetTimeoutError, RayActorError) as error:
            did = f"get {', '.join(needed)} ready" if needed else "start"
            why = ValueError(
                f"a scoring worker did not {did} within {_START_TIMEOUT_S:g} s: {error}"
            )
            self._stop(why)
            raise why from error

    def count(self, prompt: Prompt, scores: Sequence[Score]) -> None:
        """Count outcomes, and say once per criterion of a prompt that it is left out."""
        results = [result for score in scores for result in score.results]
        unverifiable = [result for result in results if result.verdict is Verdict.UNVERIFIABLE]
        left_out = {r.criterion_id: r.reason for r in unverifiable if r.for_every_response}
        unscored = sum(isinstance(score, Unscored) for score in scores)
        with self._lock:
            self._counts["groups"] += 1
            self._counts["responses"] += len(scores)
            self._counts["unscored"] += unscored
            self._counts["left_out_criteria"] += len(left_out)
            self._counts["check_failures"] += sum(not r.for_every_response for r in unverifiable)
            news = [name for name in left_out if (prompt.id, name) not in self._left_out]
            self._left_out.update((prompt.id, name) for name in news)
        for name in news:
            _log.warning("prompt %s: criterion %s is left out: %s", prompt.id, name, left_out[name])

    def add(self, name: str) -> None:
        """Count one event of `stats`."""
        with self._lock:
            self._counts[name] += 1


class _Lane:
    """One thread of the driver and its worker: takes waiting groups until the pool is shut down."""

    def __init__(self, pool: ScoringPool, worker: Any) -> None:
        self._pool = pool
        self._worker = worker
        self._group_s = _CALL_S
        """Recent time per group; starts with one group per call."""
        self._ready: set[str] = set()
        """The packages and resources that the worker has made ready."""

    def serve(self) -> None:
        """Score what waits; a failure of the pool itself goes to those who wait for it."""
        while tasks := self._take():
            try:
                self._score(tasks)
            except Exception as error:  # no new worker, or what nobody thought of: never silence
                for task in tasks:
                    if not task.scores.done():
                        task.scores.set_exception(error)

    def _take(self) -> list[_Task]:
        """The next groups, empty at the end."""
        found: list[_Task] = []
        while not found:
            first = self._pool.wait_for_one()
            if first is None:
                return []
            more = self._pool.take_waiting(max(0, int(_CALL_S / self._group_s) - 1))
            found = [t for t in (first, *more) if t.scores.set_running_or_notify_cancel()]
        return found

    def _score(self, tasks: Sequence[_Task]) -> None:
        if len(tasks) > 1:
            try:
                self._deliver(tasks, self._call(tasks))
                return
            except _CallFailed as failure:  # which group is to blame shows when each is alone
                _log.warning("%d groups are scored again one by one: %s", len(tasks), failure)
        for task in tasks:
            self._deliver([task], [self._score_alone(task)])

    def _score_alone(self, task: _Task) -> list[Score]:
        """On a crash try once more; a time-out is final."""
        name = task.prompt.id
        for _ in range(_ATTEMPTS):
            if self._pool.is_closed():
                return _unscored(task.texts, "the scoring pool was shut down")
            try:
                return self._call([task])[0]
            except _CallFailed as failure:
                if self._pool.is_closed():
                    continue
                if not failure.crashed:
                    self._pool.add("group_timeouts")
                    _log.warning("prompt %s: %s", name, failure)
                    return _unscored(task.texts, str(failure))
                _log.warning("prompt %s: a scoring worker died (%s)", name, failure)
        if self._pool.is_closed():
            return _unscored(task.texts, "the scoring pool was shut down")
        self._pool.add("isolated_groups")
        return _unscored(task.texts, f"the group crashed {_ATTEMPTS} scoring workers")

    def _call(self, tasks: Sequence[_Task]) -> list[list[Score]]:
        """One call to the worker. After a failure there is a new one."""
        self._get_ready(tasks)
        groups = [(task.prompt.rubric, task.texts, task.mode) for task in tasks]
        limit_s = self._pool.timeout_s
        started = time.monotonic()
        try:
            scores: list[list[Score]] = ray.get(self._worker.score.remote(groups), timeout=limit_s)
        except GetTimeoutError as error:
            self._replace()
            reason = f"the group was not scored within {limit_s:g} s"  # read where it was alone
            raise _CallFailed(crashed=False, reason=reason) from error
        except RayError as error:  # its death, or what no check should be able to raise
            if isinstance(error, RayTaskError) and isinstance(error.cause, CheckModuleError):
                raise CheckModuleError(str(error.cause)) from error
            if not self._pool.is_closed():
                self._pool.add("worker_crashes")
            self._replace()
            raise _CallFailed(crashed=True, reason=str(error)) from error
        self._group_s = (time.monotonic() - started) / len(tasks)
        return scores

    def _get_ready(self, tasks: Sequence[_Task]) -> None:
        """Libraries are imported outside of every limit, also that of a group."""
        needed = set[str]().union(*(needs_of(task.prompt.rubric) for task in tasks)) - self._ready
        if needed and not self._pool.is_closed():
            self._pool.wait_until_ready(self._worker, sorted(needed))
            self._ready |= needed

    def _replace(self) -> None:
        self._worker = self._pool.replace(self._worker)
        self._ready = set()

    def _deliver(self, tasks: Sequence[_Task], scores: Sequence[list[Score]]) -> None:
        for task, group in zip(tasks, scores, strict=True):
            self._pool.count(task.prompt, group)
            task.scores.set_result(group)


def _limits(config: ScoringConfig) -> CheckLimits:
    return CheckLimits(memory_bytes=config.check_memory_bytes)


def _unscored(texts: Sequence[str], reason: str) -> list[Score]:
    return [Unscored(reason) for _ in texts]
