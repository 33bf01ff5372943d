"""`herl score`: score the responses of a file, go on after an interruption, sum up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from herl_megatron.config.judge_rules import DECIDES_VERDICTS
from herl_megatron.config.schema import ClusterConfig, JudgeConfig, ScoringConfig
from herl_megatron.data.responses import ResponseRow, load_responses
from herl_megatron.rubrics.checks.registry import Mode, load_check_modules
from herl_megatron.rubrics.rubric import answer_part, asks_judge, score_no_answer
from herl_megatron.rubrics.worker import score_texts
from herl_megatron.score.output import ScoreFile, write_whole
from herl_megatron.score.totals import Totals
from herl_megatron.types import Prompt, Score, Scored

if TYPE_CHECKING:
    from herl_megatron.rubrics.pool import ScoringPool

_TEXTS_PER_WORKER = 1000
"""Ray takes seconds to start and a rule about a millisecond: less is done by one process."""


@dataclass(frozen=True)
class ScoreJob:
    """What to score and how. `workers` None: as many as the work and this machine's cores ask for.

    One worker is this process, without Ray: a check that kills its process then ends the command.
    `judge` is asked where a rubric needs one. Of each response only what follows `answer_after` is
    scored (`scoring.answer_after`).
    """

    input: Path
    out: Path
    mode: Mode = "strict"
    workers: int | None = None
    check_modules: tuple[str, ...] = ()
    check_timeout_s: float = 5.0
    judge: JudgeConfig = JudgeConfig()
    answer_after: str = ""

    @property
    def summary(self) -> Path:
        """Where the totals go."""
        return self.out.with_name(f"{self.out.name}.summary.json")


class GroupScorer(Protocol):
    """Whatever scores the responses to one prompt."""

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        """One score per text, in order."""
        ...


@dataclass(frozen=True)
class _ThisProcess:
    """Scores in the running process."""

    job: ScoreJob

    async def score_group(self, prompt: Prompt, texts: Sequence[str]) -> list[Score]:
        return score_texts(
            prompt.rubric, texts, check_timeout_s=self.job.check_timeout_s, mode=self.job.mode
        )

    def metrics(self) -> dict[str, float]:
        """Nothing is counted here."""
        return {}

    def shutdown(self) -> None:
        """Nothing to end."""


def run_score(job: ScoreJob, console: Console) -> dict[str, Any]:
    """Score what `job.out` does not hold yet; write and return the totals.

    Progress goes to `console`. Raises ValueError for a bad row (file and line), if `out` holds
    something else, or if rows need a judge and there is none that works; JudgeError (a
    RuntimeError) if it stays away. What was scored until then is kept.
    """
    load_check_modules(job.check_modules)
    rows = load_responses(str(job.input))
    asking = any(asks_judge(row.prompt.rubric) for row in rows)
    if asking:
        from herl_megatron.rubrics.scorer import require_judge  # takes a second to import

        require_judge(job.judge, [row.prompt for row in rows])
    file = ScoreFile(job.out, rows, settings=_settings(job))
    try:
        missing = file.missing()
        if missing:
            job.summary.unlink(missing_ok=True)  # it would be about fewer rows
        done = len(rows) - len(missing)
        asyncio.run(_score_missing(job, missing, file.add, console, done=done))
        file.finish()
        totals = summarize(file, job.mode)
        shown = json.dumps(totals, indent=2, ensure_ascii=False) + "\n"
        write_whole(job.summary, shown.encode())
    finally:
        file.close()
    return totals


def _settings(job: ScoreJob) -> str:
    """What the scores depend on besides the rows, as options and hashes; modules are loaded."""
    parts = [f"--mode {job.mode}"]
    if job.answer_after:
        parts.append(f"--answer-after {job.answer_after!r}")
    for name in job.check_modules:
        source = sys.modules[name].__file__
        code = Path(source).read_bytes() if source else b""
        parts.append(f"--check-module {name} (source {_short_hash(code)})")
    if job.judge.base_url:
        judge = job.judge
        asked = judge.model_dump_json(include=set(DECIDES_VERDICTS)).encode()
        template = Path(judge.prompt).read_bytes() if judge.prompt else b""
        parts.append(f"--judge-model {judge.model} (asked {_short_hash(asked + template)})")
    return " ".join(parts)


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


async def _score_missing(
    job: ScoreJob,
    rows: Sequence[ResponseRow],
    add: Callable[[ResponseRow, Sequence[Score]], None],
    console: Console,
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
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=done + len(rows), completed=done, unscored=0)
        todo = iter(rows)

        async def one_after_another(scorer: GroupScorer) -> None:
            nonlocal unscored
            for row in todo:
                answers = [answer_part(text, job.answer_after) for text in row.texts]
                scores = await scorer.score_group(row.prompt, [a or "" for a in answers])
                scores = [
                    score_no_answer(row.prompt.rubric, score) if answer is None else score
                    for answer, score in zip(answers, scores, strict=True)
                ]
                add(row, scores)
                unscored += sum(not isinstance(score, Scored) for score in scores)
                progress.update(bar, advance=1, unscored=unscored)

        async with _open_scorer(job, rows) as (scorer, at_once):
            await asyncio.gather(*(one_after_another(scorer) for _ in range(at_once)))


def _workers_for(rows: Sequence[ResponseRow]) -> int:
    texts = sum(len(row.texts) for row in rows)
    return max(1, min(len(os.sched_getaffinity(0)), texts // _TEXTS_PER_WORKER))


@asynccontextmanager
async def _open_scorer(
    job: ScoreJob, rows: Sequence[ResponseRow]
) -> AsyncIterator[tuple[GroupScorer, int]]:
    """What scores `rows`, and how many of them keep it busy."""
    workers = job.workers or _workers_for(rows)
    prompts = [row.prompt for row in rows]
    with _rules(job, workers) as rules:
        if not any(asks_judge(prompt.rubric) for prompt in prompts):
            yield rules, 16 * workers
            return
        from herl_megatron.rubrics.scorer import Scorer, open_judge

        scorer = Scorer(rules, await open_judge(job.judge, prompts))
        try:
            yield scorer, 16 * workers + job.judge.concurrency
        finally:
            await scorer.close()


@contextmanager
def _rules(job: ScoreJob, workers: int) -> Iterator[_ThisProcess | ScoringPool]:
    """Rule checks: in this process, or on a Ray of our own."""
    if workers == 1:
        yield _ThisProcess(job)
        return
    from herl_megatron.cluster.session import ray_session  # Ray takes a second to import.
    from herl_megatron.rubrics.pool import ScoringPool

    config = ScoringConfig(
        workers=workers, check_timeout_s=job.check_timeout_s, check_modules=job.check_modules
    )
    with ray_session(ClusterConfig()):
        pool = ScoringPool(config, mode=job.mode)
        try:
            yield pool
        finally:
            pool.shutdown()


def summarize(file: ScoreFile, mode: Mode) -> dict[str, Any]:
    """The totals of all rows, and of each source if there are several."""
    everything = Totals()
    by_source: dict[str, Totals] = {}
    for row, score in file.scores():
        everything.add(row, score)
        by_source.setdefault(row.prompt.source, Totals()).add(row, score)
    totals = {"mode": mode} | everything.as_json()
    if len(by_source) > 1:
        totals["by_source"] = {name: by_source[name].as_json() for name in sorted(by_source)}
    return totals


def totals_table(totals: dict[str, Any]) -> Table:
    """The totals for people."""
    parts = {"all": totals} | totals.get("by_source", {})
    table = Table(title=f"{totals['mode']} verdicts", title_justify="left")
    for heading in ("source", "responses", "unscored", "reward", "prompt level", "instructions"):
        justify: Literal["left", "right"] = "left" if heading == "source" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for name, part in parts.items():
        mean = part["mean_reward"]
        table.add_row(
            name,
            str(part["responses"]),
            str(part["unscored"]),
            "-" if mean is None else f"{mean:.4f}",
            _share_text(part["prompt_level"]),
            _share_text(part["instruction_level"]),
        )
    return table


def top_reasons(totals: dict[str, Any], n: int) -> list[str]:
    """The most frequent reasons of unscored responses and of criteria left out, `n` of each."""
    return [
        f"{what}: {count} x {reason}"
        for what, key in (
            ("unscored", "unscored_by_reason"),
            ("left out", "unverifiable_by_reason"),
        )
        for reason, count in list(totals[key].items())[:n]
    ]


def _share_text(share: dict[str, Any]) -> str:
    if not share["of"]:
        return "-"
    return f"{share['satisfied']}/{share['of']} = {100 * share['share']:.2f} %"
