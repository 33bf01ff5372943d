"""`herl report`: read runs, draw, write `report.html` and the pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from herl_megatron.report.derived import with_derived
from herl_megatron.report.figures import draw_chapter, draw_time_split
from herl_megatron.report.html import Html
from herl_megatron.report.page import Picture, build_page, is_report
from herl_megatron.report.panels import chapters_for
from herl_megatron.report.rollouts import (
    CriterionNames,
    RolloutStats,
    read_rollout_stats,
    sample_records,
)
from herl_megatron.report.runs import ReportedRun, RunGroup, group_runs, read_run
from herl_megatron.report.samples import sample
from herl_megatron.report.tables import check_lines

_MAX_TIME_ROWS = 12
PAGE = "report.html"
"""Name of the page in the folder of a report."""


def write_report(folders: Sequence[Path], *, out: Path | None = None, samples: int = 4) -> Path:
    """Write the report of these runs to `out` and return the path of the page.

    Without `out` one run's report goes to RUN/report and that of several to `report` here.
    `samples` groups are shown per run.

    Raises:
        ValueError: a folder that is no run or has no steps yet, a folder given twice, or a file
            that is not what a run writes, or a file in `out` that no report wrote.
    """
    resolved = [os.path.realpath(folder) for folder in folders]  # of links in a circle too
    for folder in folders:
        if resolved.count(os.path.realpath(folder)) > 1:
            raise ValueError(f"{folder} is given more than once; it would count as another seed")
    raw = [read_run(folder) for folder in folders]
    names = {run.path: CriterionNames.of(run) for run in raw}
    stats = {run.path: read_rollout_stats(run, names[run.path]) for run in raw}
    groups = group_runs([with_derived(run, stats[run.path]) for run in raw])
    out = out or (folders[0] / "report" if len(folders) == 1 else Path("report"))
    pictures = _pictures(groups)
    require_replaceable(out, [f"{picture.name}.png" for picture in pictures])
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (out / f"{picture.name}.png").write_bytes(picture.png)
    page = build_page(
        groups,
        pictures=pictures,
        checks=[(g.label, check_lines(g, [stats[r.path] for r in g.runs])) for g in groups],
        samples=[
            (str(run.path), _samples(run, stats[run.path], names[run.path], count=samples))
            for group in groups
            for run in group.runs
        ],
    )
    path = out / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def require_replaceable(out: Path, pictures: Sequence[str]) -> None:
    """Only an earlier report is replaced: its page says that it is one, its pictures lie there.

    pictures: what is written beside the page.

    Raises:
        ValueError: something else is there.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    page = out / PAGE
    if page.is_file() and is_report(page.read_text(encoding="utf-8", errors="replace")):
        return
    if there := [name for name in (PAGE, *pictures) if os.path.lexists(out / name)]:
        raise ValueError(
            f"{out / there[0]} is there already and is no report of herl; name another folder with"
            " --out"
        )


def _pictures(groups: Sequence[RunGroup]) -> list[Picture]:
    pictures = []
    for chapter in chapters_for(groups):
        png, narrow = (
            _png(partial(draw_chapter, chapter, groups, narrow=narrow)) for narrow in (False, True)
        )
        pictures.append(Picture(chapter.name, chapter.title, chapter.note, png, narrow))
    rows = _time_rows(groups)
    if rows:
        png = _png(partial(draw_time_split, rows))
        note = "Wall time of the finished runs by phase, start and evaluations included"
        note += ", means over each group." if len(rows) < sum(map(_finished, groups)) else "."
        pictures.append(Picture("time_split", "Time of the whole run", note, png))
    return pictures


def _time_rows(groups: Sequence[RunGroup]) -> list[tuple[str, Mapping[str, float]]]:
    """Seconds by phase: one row per finished run or, where these are many, one per group."""
    rows = [
        (group.label, str(run.path), run.summary["seconds"])
        for group in groups
        for run in group.runs
        if run.summary and run.summary.get("seconds")
    ]
    if len(rows) <= _MAX_TIME_ROWS:
        return [(path, seconds) for _, path, seconds in rows]
    means: list[tuple[str, Mapping[str, float]]] = []
    for label in dict.fromkeys(label for label, _, _ in rows):
        own = [seconds for other, _, seconds in rows if other == label]
        phases = dict.fromkeys(phase for seconds in own for phase in seconds)
        means.append((label, {p: sum(s.get(p, 0.0) for s in own) / len(own) for p in phases}))
    return means


def _finished(group: RunGroup) -> int:
    return sum(1 for run in group.runs if run.summary and run.summary.get("seconds"))


def _png(draw: Callable[[], Figure]) -> bytes:
    file = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # a name with two dollar signs is no formula
        draw().savefig(file, format="png")
    return file.getvalue()


def _samples(
    run: ReportedRun, stats: RolloutStats, names: CriterionNames, *, count: int
) -> list[Html]:
    chosen = sample_records(run, stats, count=count)
    return [
        sample(step, record, names, opened=index == 0)
        for index, (step, record) in enumerate(chosen)
    ]
