"""`herl score`: score the responses of a file, go on after an interruption, sum up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from herl_megatron.benchmarks.known_benchmarks import summarize as summarize_benchmarks
from herl_megatron.benchmarks.known_benchmarks import wants_loose
from herl_megatron.commands.loose import loose_verdicts
from herl_megatron.commands.results import ScoreResult
from herl_megatron.commands.score.output import ScoreFile, check_replaceable, write_whole
from herl_megatron.commands.score.scored_records import Loose
from herl_megatron.commands.score.totals import Totals
from herl_megatron.config.decides import keys_that_decide
from herl_megatron.config.schema import ClusterConfig, JudgeConfig, ScoringConfig
from herl_megatron.config.schema.base import Decides
from herl_megatron.data.responses import ResponseRow, load_responses
from herl_megatron.files.run_files import JUDGE_SPENT
from herl_megatron.rubrics.checks.isolated.wire import CheckLimits
from herl_megatron.rubrics.checks.local import Mode
from herl_megatron.rubrics.checks.registry import (
    end_user_processes,
    forget_user_checks,
    is_users,
    load_check_modules,
    module_file,
    run_user_checks,
)
from herl_megatron.rubrics.checks.sources import source_hash
from herl_megatron.rubrics.rubric import answer_part, asks_judge, score_no_answer
from herl_megatron.rubrics.worker import score_text
from herl_megatron.types import CriterionResult, Prompt, Rubric, Score, Scored

if TYPE_CHECKING:
    from herl_megatron.rubrics.pool import ScoringPool

_TEXTS_PER_WORKER = 1000
"""Ray takes seconds to start and a rule about a millisecond: less is done by one process."""


@dataclass(frozen=True)
class ScoreJob:
    """What to score and how.

    `scoring.workers` that nobody set: as many as the work and this machine's cores ask for. One
    worker is this process, without Ray, and a child for the checks of `scoring.check_modules`.
    `judge` is asked where a rubric needs one.
    """

    input: Path
    out: Path
    mode: Mode = "strict"
    scoring: ScoringConfig = ScoringConfig()
    judge: JudgeConfig = JudgeConfig()

    @property
    def summary(self) -> Path:
        """Where the totals go."""
        return self.out.with_name(f"{self.out.name}.summary.json")


class FileScorer(Protocol):
    """Whatever scores the responses to one prompt."""

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order."""
        ...

    async def score_loosely(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """The same by the best of a text's eight variants."""
        ...


class _ThisProcess:
    """Scores in the running process, one text at a time; a Ctrl-C is noticed between them, and
    while a user's check runs."""

    def __init__(self, job: ScoreJob) -> None:
        self._timeout_s, self._mode = job.scoring.check_timeout_s, job.mode
        self._turn = asyncio.Lock()

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        async with self._turn:
            return [await self._score(prompt.rubric, text, self._mode) for text in texts]

    async def score_loosely(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        async with self._turn:
            return [await self._score(prompt.rubric, text, "loose") for text in texts]

    async def _score(self, rubric: Rubric, text: str, mode: Mode) -> Score:
        theirs: dict[str, CriterionResult] = {}
        if any(is_users(criterion) for criterion in rubric.criteria):
            theirs = await asyncio.to_thread(
                run_user_checks, rubric.criteria, text, mode=mode, timeout_s=self._timeout_s
            )
        else:
            await asyncio.sleep(0)
        return score_text(rubric, text, theirs, check_timeout_s=self._timeout_s, mode=mode)

    def metrics(self) -> dict[str, float]:
        """Nothing is counted here."""
        return {}

    def shutdown(self) -> None:
        """Nothing to end."""


async def run_score(job: ScoreJob) -> ScoreResult:
    """Score what `job.out` does not hold yet, with progress on the standard error; write and return
    the totals.

    Raises ValueError for a bad row (file and line), if `out` holds something else, or if rows need
    a judge and there is none that works; JudgeError (a RuntimeError) if it stays away. What was
    scored until then is kept.
    """
    check_replaceable(job.out)
    _check_summary(job.summary)
    limits = CheckLimits(memory_bytes=job.scoring.check_memory_bytes)
    load_check_modules(job.scoring.check_modules, limits=limits)
    try:
        return ScoreResult(job.out, job.summary, await _run_loaded(job))
    finally:
        forget_user_checks()


async def _run_loaded(job: ScoreJob) -> dict[str, Any]:
    rows = load_responses(str(job.input))
    asking = any(asks_judge(row.prompt.rubric) for row in rows)
    if asking:
        from herl_megatron.rubrics.scorer import require_judge  # takes a second to import

        require_judge(job.judge, [row.prompt for row in rows])
    strict = job.mode == "strict"
    file = ScoreFile(
        job.out, rows, settings=_settings(job), loose=wants_loose if strict else lambda _: False
    )
    try:
        missing = file.missing()
        if missing:
            job.summary.unlink(missing_ok=True)  # it would be about fewer rows
        done = len(rows) - len(missing)
        await _score_missing(job, missing, file.add, done=done)
        file.finish()
        totals = summarize(file, job.mode)
        shown = json.dumps(totals, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(job.summary, shown.encode())
    finally:
        file.close()
    return totals


def _check_summary(path: Path) -> None:
    """Raise ValueError if the totals would replace something that is not `herl score`'s."""
    check_replaceable(path)
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        known = None
    if not (isinstance(known, dict) and known.keys() >= {"mode", "responses", "scored"}):
        raise ValueError(
            f"{path} is not of `herl score`, which would write its totals there; move it, or name"
            " another file with --out"
        )


def _settings(job: ScoreJob) -> str:
    """What the scores depend on besides the rows, as options and hashes; modules are loaded.

    Not the time limit of a check: what ran out of time has no score and is scored anew.
    """
    parts = [f"--mode {job.mode}"]
    if job.scoring.answer_after:
        parts.append(f"--answer-after {job.scoring.answer_after!r}")
    for name in job.scoring.check_modules:
        source = source_hash(name, module_file(name))
        parts.append(f"--check-module {name} (source {source})")
    if job.judge.base_url:
        judge = job.judge
        asked = judge.model_dump_json(include=_judge_keys() - {"model"}).encode()
        files = filter(None, (judge.prompt, judge.grader_prompt))
        template = b"".join(Path(file).read_bytes() for file in files)
        parts.append(f"--judge-model {judge.model} (asked {_short_hash(asked + template)})")
    return " ".join(parts)


def _judge_keys() -> set[str]:
    """Keys of the judge section that its answers depend on, without its prompt's path."""
    decisive = keys_that_decide(Decides.VERDICTS, purpose="eval")
    paths = {key.path for key in decisive if not key.by_content}
    return {path.removeprefix("judge.") for path in paths if path.startswith("judge.")}


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


async def _score_missing(
    job: ScoreJob,
    rows: Sequence[ResponseRow],
    add: Callable[[ResponseRow, Sequence[Score], Loose], None],
    *,
    done: int,
) -> None:
    """Score rows, a few at a time, and `add` each when it is done."""
    if not rows:
        return
    unscored = 0
    columns = (
        TextColumn("scored"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[unscored]} unscored"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=done + len(rows), completed=done, unscored=0)
        todo = iter(rows)

        async def one_after_another(scorer: FileScorer) -> None:
            nonlocal unscored
            for row in todo:
                answers = [answer_part(text, job.scoring.answer_after) for text in row.texts]
                texts = [answer or "" for answer in answers]
                scores = await scorer.score_group(row.prompt, texts)
                scores = [
                    score_no_answer(row.prompt.rubric, score) if answer is None else score
                    for answer, score in zip(answers, scores, strict=True)
                ]
                loose: Loose = ()
                if job.mode == "strict":
                    loose = await loose_verdicts(scorer, row.prompt, texts, scores)
                add(row, scores, loose)
                unscored += sum(not isinstance(score, Scored) for score in scores)
                progress.update(bar, advance=1, unscored=unscored)

        async with _open_scorer(job, rows) as (scorer, at_once):
            await asyncio.gather(*(one_after_another(scorer) for _ in range(at_once)))


def _workers_for(scoring: ScoringConfig, rows: Sequence[ResponseRow]) -> int:
    if "workers" in scoring.model_fields_set:
        return scoring.workers
    texts = sum(len(row.texts) for row in rows)
    return max(1, min(len(os.sched_getaffinity(0)), texts // _TEXTS_PER_WORKER))


@asynccontextmanager
async def _open_scorer(
    job: ScoreJob, rows: Sequence[ResponseRow]
) -> AsyncIterator[tuple[FileScorer, int]]:
    """What scores `rows`, and how many of them keep it busy."""
    workers = _workers_for(job.scoring, rows)
    prompts = [row.prompt for row in rows]
    with _rules(job, workers) as rules:
        if not any(asks_judge(prompt.rubric) for prompt in prompts):
            yield rules, 16 * workers
            return
        from herl_megatron.rubrics.scorer import Scorer, open_judge

        spent = job.out.with_name(f"{job.out.name}.{JUDGE_SPENT}")
        scorer = Scorer(rules, await open_judge(job.judge, prompts, spent=spent))
        try:
            yield scorer, 16 * workers + job.judge.concurrency
        finally:
            await scorer.close()


@contextmanager
def _rules(job: ScoreJob, workers: int) -> Iterator[_ThisProcess | ScoringPool]:
    """Rule checks: in this process, or on a Ray of our own. Only the main thread can limit the time
    of a check (`rubrics.checks.time_limit`)."""
    if workers == 1 and threading.current_thread() is threading.main_thread():
        try:
            yield _ThisProcess(job)
        finally:
            end_user_processes()  # also one that is waited for when the command is interrupted
        return
    from herl_megatron.cluster.session import ray_session  # Ray takes a second to import.
    from herl_megatron.rubrics.pool import ScoringPool

    with ray_session(ClusterConfig()):
        pool = ScoringPool(job.scoring.model_copy(update={"workers": workers}), mode=job.mode)
        try:
            yield pool
        finally:
            pool.shutdown()


def summarize(file: ScoreFile, mode: Mode) -> dict[str, Any]:
    """The totals of all rows, of each source if there are several, and of strict verdicts the
    metrics of each benchmark that has rows among them."""
    everything = Totals()
    by_source: dict[str, Totals] = {}
    for row, score in file.scores():
        everything.add(row, score)
        by_source.setdefault(row.prompt.source, Totals()).add(row, score)
    totals = {"mode": mode} | everything.as_json()
    if len(by_source) > 1:
        totals["by_source"] = {name: by_source[name].as_json() for name in sorted(by_source)}
    if mode == "strict" and (numbers := summarize_benchmarks(file.answered())):
        totals["benchmarks"] = {name: one.as_json() for name, one in numbers.items()}
    return totals
