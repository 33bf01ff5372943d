"""A run's folder, `run.dir`/`run.name`.

- `config.yaml`: the resolved configuration; `herl train` takes it as it is
- `metrics.jsonl`: one line per logged step; the same in `tensorboard/`
- `rollouts/*.jsonl`: one line per group with responses, verdicts and revisions
- `policy/`: the exported policy, a Hugging Face folder
- `checkpoints/step_*`: training state to resume from (`observability.checkpoints`)
- `summary.json`, `learning_curve.png`, `run.log`
- `run.lock`: held while the run lasts, so that no second one writes in between
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from herl_megatron.config.load import save_resolved
from herl_megatron.config.paths import LOCK_FILE, checkpoint_folders, run_path
from herl_megatron.config.schema import Config
from herl_megatron.observability.checkpoints import Checkpoint, find_checkpoint
from herl_megatron.observability.curves import plot_learning_curve
from herl_megatron.observability.logging import add_log_file, remove_handler
from herl_megatron.observability.metrics import MetricsWriter
from herl_megatron.observability.rollout_log import group_record, write_rollouts
from herl_megatron.observability.run_lock import RunLock
from herl_megatron.observability.summary import Evaluated, build_summary, print_summary
from herl_megatron.observability.timers import Timers
from herl_megatron.types import RowOrigin, ScoredGroup, TrainRow

logger = logging.getLogger(__name__)

_SHOWN = {
    "reward/mean": "reward",
    "reward/all_satisfied": "all satisfied",
    "sft/loss": "loss",
    "dpo/loss": "loss",
    "dpo/accuracy": "accuracy",
}
_LINES_WITHOUT_TERMINAL = 20


class JoinedRows(Protocol):
    """A group's joined rows and where each comes from (`batching.rows.GroupRows`)."""

    @property
    def rows(self) -> tuple[TrainRow, ...]:
        """The rows."""
        ...

    @property
    def origins(self) -> tuple[RowOrigin, ...]:
        """One origin per row."""
        ...


class RunFolder:
    """The open folder of a run; use as a context manager.

    Attributes:
        checkpoint: what the run continues from; None from the beginning.
    """

    def __init__(self, path: Path, lock: RunLock, checkpoint: Checkpoint | None = None) -> None:
        self.path = path
        self._lock = lock
        self.checkpoint = checkpoint
        purge_step = checkpoint.driver.step if checkpoint else None
        self._metrics = MetricsWriter(path, purge_step=purge_step)
        self._log = add_log_file(path / "run.log")
        self._bar: Progress | None = None
        self._latest = ""

    @classmethod
    def create(cls, config: Config, *, keep: Collection[str] = ()) -> Self:
        """Make `run.dir`/`run.name` and save the resolved configuration in it.

        keep: files that stay with `run.resume` where no checkpoint says how far the run came.

        With `run.resume` and a checkpoint the folder is kept and taken back to that step: what was
        written after it (metrics, rollouts, an exported policy) goes, to be written again.

        Raises:
            ValueError: the folder holds something and neither `run.overwrite` nor `run.resume` is
                set, or what it holds is not a run, or holds this run's input (those are never
                deleted), or there is no checkpoint that fits (`find_checkpoint`), or another run
                is writing in the folder.
        """
        path = run_path(config)
        checkpoint = find_checkpoint(config)
        lock = RunLock.take(path)
        try:
            if checkpoint is not None:
                _take_back(path, checkpoint)
            else:
                _clear(path, keep if config.run.resume else ())
            # How this start treated the folder is no property of the run.
            once = config.run.model_copy(update={"overwrite": False, "resume": False})
            save_resolved(config.model_copy(update={"run": once}), path / "config.yaml")
            return cls(path, lock, checkpoint)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            interrupted = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt))
            what = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
            logger.error("run ended early: %s", what)
            if checkpoint_folders(self.path):
                config = shlex.quote(str(self.path / "config.yaml"))
                logger.error("resume it with: herl train %s run.resume=true", config)
        if self._bar is not None:
            self._bar.stop()
        self._metrics.close()
        remove_handler(self._log)
        self._lock.release()

    @property
    def policy(self) -> Path:
        """Where the policy is exported."""
        return self.path / "policy"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's (or evaluation's) metrics."""
        self._metrics.write(step, values)
        shown = [f"{title} {values[name]:.3f}" for name, title in _SHOWN.items() if name in values]
        self._latest = ", ".join(shown) or self._latest

    def sync_metrics(self) -> int:
        """Bring metrics.jsonl to the disk itself; returns its length in bytes."""
        return self._metrics.sync()

    def log_rollouts(
        self, name: str, groups: Sequence[ScoredGroup], rows: Sequence[JoinedRows] = ()
    ) -> None:
        """Write `rollouts/NAME.jsonl`; `rows` are the groups' joined rows, where there are any."""
        if rows:
            pairs = zip(groups, rows, strict=True)
            records = [group_record(group, row.rows, row.origins) for group, row in pairs]
        else:
            records = [group_record(group) for group in groups]
        write_rollouts(self.path / "rollouts" / f"{name}.jsonl", records)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `NAME` into the folder; it appears whole or not at all."""
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / name)

    def progress(self, steps: range, label: str) -> Iterator[int]:
        """Yield `steps` under a progress bar; without a terminal, log some of them as lines."""
        if not get_console().is_terminal:
            yield from self._progress_lines(steps, label)
            return
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            expand=True,
        )
        with self._bar as bar:
            task = bar.add_task(label, total=len(steps), latest="")
            for step in steps:
                yield step
                bar.update(task, advance=1, latest=self._latest)

    def finish(self, *, before: Evaluated | None, after: Evaluated | None, timers: Timers) -> None:
        """Write summary and learning curve and print the table."""
        history = self._metrics.history
        summary = build_summary(history, before=before, after=after, seconds=timers.totals())
        self.write_json("summary.json", summary)
        plot_learning_curve(history, self.path / "learning_curve.png", title=self.path.name)
        print_summary(summary, folder=self.path, console=get_console())

    def _progress_lines(self, steps: range, label: str) -> Iterator[int]:
        every = max(len(steps) // _LINES_WITHOUT_TERMINAL, 1)
        for count, step in enumerate(steps, start=1):
            yield step
            if count % every == 0 or count == len(steps):
                logger.info("%s %d/%d: %s", label, count, len(steps), self._latest)


def _clear(path: Path, keep: Collection[str]) -> None:
    """Remove everything but the lock and `keep`."""
    for item in path.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name not in (LOCK_FILE, *keep):
            item.unlink()


def _take_back(path: Path, checkpoint: Checkpoint) -> None:
    """Remove what the run wrote after the checkpoint."""
    metrics, length = path / "metrics.jsonl", checkpoint.driver.metrics_bytes
    found = metrics.stat().st_size if metrics.exists() else 0
    if found < length:
        raise ValueError(
            f"{metrics} has {found} bytes, but {checkpoint.folder} was made at {length}: restore"
            " the file, or start over with run.resume=false run.overwrite=true"
        )
    if length:
        os.truncate(metrics, length)
    step = checkpoint.driver.step
    for file in (path / "rollouts").glob("*"):
        kind, _, number = file.stem.partition("_")
        # step_N is written in step N (from 0), eval_N after N steps.
        last_kept = {"step": step - 1, "eval": step}.get(kind, -1)
        if not number.isdigit() or int(number) > last_kept:
            file.unlink()
    shutil.rmtree(path / "policy", ignore_errors=True)
    for name in ("summary.json", "learning_curve.png"):
        (path / name).unlink(missing_ok=True)
