"""What was measured: the evaluations of rows, read back from their folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from herl_megatron.config.decides import keys_that_decide
from herl_megatron.config.schema.base import Decides
from herl_megatron.files.os_errors import absent
from herl_megatron.files.run_files import EVALUATED, read_run_file
from herl_megatron.files.strict_json import read_object
from herl_megatron.report.runs import ReportedRun, read_run
from herl_megatron.reproduce.lineage import POLICY, is_of_earlier_policy
from herl_megatron.reproduce.paper_rows import PaperRow, find_row
from herl_megatron.reproduce.row_record import RECORD, read_record
from herl_megatron.reproduce.stale import is_aside

TOY = "toy"
"""Stands for a benchmark in the toy's rows: the share of responses that meet their whole rubric."""
_NAME = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
_ROWS_OWN = ("run.seed", "data.template_date", "data.eval")
"""What may differ between the rows of a column: the last is compared by what the file holds."""


@dataclass(frozen=True)
class RowRun:
    """A run of `herl eval` that is known to be of a row."""

    row: PaperRow
    scale: str
    preset: str
    run: ReportedRun


@dataclass(frozen=True)
class MeasuredCell:
    """One number. value, low, high: in percent, with one decimal; the interval may be missing.

    prompts: n. unscored: of the responses, those that nobody could score, which no number counts.
    sampling: keys and values that cells of one column must share. notes: what keeps the number from
    comparing with published ones, as `herl eval` found it.
    """

    source: RowRun
    benchmark: str
    value: Decimal
    low: Decimal | None
    high: Decimal | None
    prompts: int
    responses: int
    unscored: int
    sampling: Mapping[str, object]
    notes: tuple[str, ...] = ()


def find_runs(folders: Sequence[Path], named: Mapping[str, Path]) -> list[RowRun]:
    """The evaluations in these folders: those of `herl eval` that `herl reproduce` made, rows of
    it, or a folder above them.

    named: row -> a run of `herl eval` that was made without it.

    Raises:
        ValueError: a folder that is none of these, an unknown row, or one without numbers yet.
    """
    found = [run for folder in folders for run in _in_folder(folder)]
    for name, folder in named.items():
        row = find_row(name)
        found.append(RowRun(row, "full", "", _evaluation(folder)))
    return found


def _in_folder(folder: Path) -> Iterator[RowRun]:
    if problem := absent(folder, "folder"):
        raise ValueError(f"{problem}: {folder}")
    if read_run_file(folder):
        yield _known(folder, folder.resolve().parent)
        return
    rows = sorted(file.parent for file in folder.rglob(RECORD))
    rows = [row for row in rows if (record := read_record(row)) and record.row]
    if not rows:
        raise ValueError(
            f"{folder} is neither a run of `herl eval` nor a row of `herl reproduce` (no {RECORD}),"
            " and holds none"
        )
    runs = [
        _known(path.parent, row)
        for row in rows
        for path in sorted(row.glob(f"eval_*/{EVALUATED}"))
        if not is_aside(path.parent)
    ]
    if not runs:
        raise ValueError(f"{folder} has no evaluation that is done; `herl reproduce` goes on there")
    yield from runs


def _known(folder: Path, row: Path) -> RowRun:
    run = _evaluation(folder)
    record = read_record(row)
    if record is None or not record.row:
        raise ValueError(
            f"{folder}: nothing says which row of the paper it is (no {RECORD} beside it); give"
            f" --row NAME={folder}, with a name of `herl reproduce --list`"
        )
    try:
        found = find_row(record.row)
    except ValueError as error:
        raise ValueError(f"{row / RECORD}: {error}") from error
    if is_of_earlier_policy(row, folder.name):
        raise ValueError(
            f"{folder} has the numbers of an earlier policy than {row / POLICY}: `herl reproduce"
            f" {record.row} --redo` evaluates what is there now"
        )
    return RowRun(found, record.scale, record.preset, run)


def _evaluation(folder: Path) -> ReportedRun:
    """A finished run of `herl eval`.

    Raises:
        ValueError: it is of another command, or not done.
    """
    command = read_run_file(folder).get("command")
    if command != "eval":
        policy = folder / "policy"
        instead = f"; evaluate what it learnt: model.path={policy}" if policy.is_dir() else ""
        what = f"a run of `herl {command}`" if command else "no run of herl"
        raise ValueError(f"{folder} is {what}, and a table is made of `herl eval`{instead}")
    if not (folder / EVALUATED).is_file():
        raise ValueError(f"{folder} is not done: it has no {EVALUATED}; evaluate again")
    return read_run(folder)


def cells_of(source: RowRun) -> list[MeasuredCell]:
    """Its numbers, by benchmark.

    Raises:
        ValueError: it has none by benchmark, or what the file holds is not what `herl eval` writes.
    """
    file = source.run.path / EVALUATED
    values = read_object(file)
    if source.scale == TOY:
        return [_toy_cell(source, values, file)]
    benchmarks = values.get("benchmarks")
    if not isinstance(benchmarks, Mapping) or not benchmarks:
        raise ValueError(
            f"{file} has no numbers by benchmark: its rows are of none that is known, or an earlier"
            " version evaluated them; evaluate again with a file of configs/benchmarks/"
        )
    rows = values.get("rows")
    rows = rows if isinstance(rows, Mapping) else {}
    return [
        _cell(source, str(name), found, file, str(rows.get(name, "")))
        for name, found in benchmarks.items()
    ]


def _cell(source: RowRun, name: str, found: Any, file: Path, rows: str) -> MeasuredCell:
    try:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r:.40} is no name")
        headline = found["headline"]
        value = _percent(found["metrics"][headline])
        interval = (found.get("interval") or {}).get(headline)
        low, high = (None, None) if interval is None else map(_percent, interval)
        prompts, responses, unscored = (
            _count(found[key]) for key in ("prompts", "responses", "unscored")
        )
        notes = tuple(str(note) for note in found.get("notes") or ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: benchmarks.{name!r:.40} is not what `herl eval` writes ({error!r:.200});"
            " evaluate again"
        ) from error
    sampling = _sampling(source.run, rows)
    return MeasuredCell(
        source, name, value, low, high, prompts, responses, unscored, sampling, notes
    )


def _toy_cell(source: RowRun, values: Mapping[str, Any], file: Path) -> MeasuredCell:
    try:
        value = _percent(values["all_satisfied"])
        responses, unscored = _count(values["responses"]), _count(values["unscored"])
        prompts = responses // (_count(source.run.settings["eval.samples_per_prompt"]) or 1)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not what `herl eval` writes ({error!r:.200})") from error
    sampling = _sampling(source.run, "")
    return MeasuredCell(source, TOY, value, None, None, prompts, responses, unscored, sampling)


def _percent(share: Any) -> Decimal:
    """In percent, of a fraction of 1; a score may be below 0."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not -1 <= share <= 1:
        raise ValueError(f"{share!r:.40} is no number from -1 to 1")
    return (Decimal(repr(share)) * 100).quantize(Decimal("0.1"), ROUND_HALF_EVEN)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _sampling(run: ReportedRun, rows: object) -> dict[str, object]:
    """What an evaluation's numbers depend on but for the model: keys, and the rows themselves, of
    the benchmark where the run knows them apart."""
    kinds = (Decides.NUMBERS, Decides.VERDICTS, Decides.EVALUATION)
    keys = [key.path for key in keys_that_decide(*kinds, purpose="eval")]
    shared = [key for key in keys if not key.startswith("model.") and key not in _ROWS_OWN]
    if not rows:
        prints = read_run_file(run.path).get("fingerprints")
        rows = prints.get("data.eval") if isinstance(prints, Mapping) else None
    return {key: run.settings.get(key) for key in shared} | {"its rows": rows}
