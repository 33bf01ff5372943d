"""A run's folder, `run.dir`/`run.name`.

- `config.yaml`: the resolved configuration; `herl train` takes it as it is
- `metrics.jsonl`: one line per logged step; the same in `tensorboard/` and other `trackers`
- `provenance.json`: when, where, and with which code and command it was started
- `rollouts/*.jsonl`: one line per group with responses, verdicts and revisions
- `policy/`: the exported policy, a Hugging Face folder
- `checkpoints/step_*`: training state to resume from (`run.checkpoints`)
- `summary.json`, `learning_curve.png`, `run.log`
- `run.lock`: held while the run lasts, so that no second one writes in between
- `herl_run.json`: makes the folder a run (`files.run_files`, which has every name); nothing that
  herl did not write is ever removed
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich import get_console
from rich.progress import Progress

from herl_megatron.config.load import save_resolved
from herl_megatron.config.paths import Start, aside, plan_start, run_path
from herl_megatron.config.purpose import TRAINS, Purpose
from herl_megatron.config.schema import Config
from herl_megatron.device import gpu_counts
from herl_megatron.errors import SavedForResume, policy_lost
from herl_megatron.files.run_files import (
    GROUPS,
    JUDGE_SPENT,
    LOCK_FILE,
    PROVENANCE,
    ROLLOUTS,
    RUN_FILE,
    TRACKERS,
    UNPUBLISHED_STEP,
    checkpoint_folders,
    is_source_diff,
    own_files,
    own_policy_files,
    write_run_file,
)
from herl_megatron.observability.evaluations import EVALUATION_CHANGED, comparable
from herl_megatron.observability.live import progress_bar
from herl_megatron.observability.logging import add_log_file, remove_handler
from herl_megatron.observability.metrics import MetricsWriter, read_metrics
from herl_megatron.observability.node_memory import in_short
from herl_megatron.observability.phases import phases
from herl_megatron.observability.rollout_log import group_record, write_rollouts
from herl_megatron.observability.saved_groups import write_groups
from herl_megatron.observability.step_lines import StepLines, evaluation_line
from herl_megatron.observability.summary import Evaluated, build_summary, print_summary
from herl_megatron.observability.timers import Timers
from herl_megatron.observability.trackers import open_trackers
from herl_megatron.observability.trackers.fan_out import Trackers
from herl_megatron.observability.trackers.protocol import SamplesOf, TrackedRun, text_sample
from herl_megatron.observability.versions import package_versions
from herl_megatron.run.checkpoints import Checkpoint, find_checkpoint, remove_files
from herl_megatron.run.lock import RunLock
from herl_megatron.run.provenance import record_end, record_nodes, record_start
from herl_megatron.types import RowOrigin, ScoredGroup, StepMetrics, TrainRow

logger = logging.getLogger(__name__)


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
        resume_helps: false where a resumed run would end in the same way (`run.rescue`);
            an error that says that the policy is lost counts as well.
    """

    def __init__(
        self,
        path: Path,
        lock: RunLock,
        config: Config,
        *,
        record: Mapping[str, Any],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.path = path
        self._lock = lock
        self._config = config
        self._record = record
        self.checkpoint = checkpoint
        self.resume_helps = True
        self._nodes: Sequence[Mapping[str, Any]] = ()
        self._open_metrics: MetricsWriter | None = None
        self._trackers = Trackers({})
        self._bar: Progress | None = None
        self._lines: StepLines | None = None
        self._shown = ExitStack()
        self._log = add_log_file(path / "run.log")

    @classmethod
    def create(
        cls,
        config: Config,
        *,
        purpose: Purpose = "train",
        fingerprints: Mapping[str, str] | None = None,
    ) -> Self:
        """Make `run.dir`/`run.name` the folder of a run of `herl PURPOSE`.

        fingerprints: of what the run reads (`data.fingerprints`); kept, and compared by a resume.

        What an earlier run left is treated as `config.paths.plan_start` says. With `run.resume`
        and something to go on from, nothing changes yet: `take_back` is for when the run stands
        where it left off, so that a start that fails has cost nothing.

        Raises:
            ValueError: `plan_start` refuses, no checkpoint fits (`find_checkpoint`), metrics.jsonl
                cannot be read up to the checkpoint, or another run is writing in the folder.
        """
        path = run_path(config)
        start, checkpoint = _look(config, purpose, fingerprints)
        lock = RunLock.take(path)
        folder = None
        try:
            if _changed_meanwhile(config, purpose, start, checkpoint):
                raise ValueError(
                    f"run.dir/run.name: another run was writing in {path} a moment ago; start again"
                )
            if start == "aside":
                lock = _move_aside(path, lock)
            elif start == "replace":
                _remove_run(path)
            record = {
                "command": purpose,
                "versions": package_versions(),
                "fingerprints": dict(fingerprints or {}),
            }
            if start != "resume":
                write_run_file(path, record)  # first: a folder of a start that is killed is herl's
                _make_room_for_policy(path)
            folder = cls(path, lock, config, record=record, checkpoint=checkpoint)
            if start != "resume":
                folder._begin()
            return folder
        except BaseException:
            if folder is not None:
                remove_handler(folder._log)
            lock.release()
            raise

    def take_back(self, *, keep: Collection[str] = ()) -> None:
        """Remove what the run wrote after its checkpoint, to be written again: metrics, rollouts,
        an exported policy. Without a checkpoint all numbers go but the files `keep`.

        Only a resumed run has something to take back; without, nothing happens.
        """
        if self._open_metrics is not None:
            return
        if self.checkpoint is not None:
            _take_back(self.path, self.checkpoint)
        else:
            stay = {*keep, LOCK_FILE, RUN_FILE, JUDGE_SPENT, TRACKERS, PROVENANCE}
            stay |= {"config.yaml", "run.log"}
            old = [
                file
                for file in own_files(self.path)
                if file.name not in stay and not is_source_diff(file)
            ]
            remove_files(old, self.path)
        write_run_file(self.path, self._record)
        _make_room_for_policy(self.path)
        self._begin()
        if self.checkpoint is not None and self.checkpoint.other_evaluation:
            # From here on held-out numbers are of another evaluation (`evaluations.comparable`).
            self.log(self.checkpoint.driver.step, {EVALUATION_CHANGED: 1.0})

    def _begin(self) -> None:
        """From here on what the folder holds is this run's."""
        # How this start treated the folder is no property of the run.
        run = self._config.run.model_copy(update={"overwrite": False, "resume": False})
        save_resolved(self._config.model_copy(update={"run": run}), self.path / "config.yaml")
        purge_step = self.checkpoint.driver.step if self.checkpoint else None
        record_start(self.path, gpus=gpu_counts(), nodes=self._nodes)
        self._open_metrics = MetricsWriter(self.path)
        tracked = TrackedRun(
            folder=self.path,
            name=self._config.run.name,
            command=str(self._record["command"]),
            config=self._config.model_dump(mode="json"),
        )
        again = [item for item in self._metrics.history if item.step >= (purge_step or 0)]
        self._trackers = open_trackers(
            self._config.tracking, tracked, purge_step=purge_step, again=again
        )

    @property
    def _metrics(self) -> MetricsWriter:
        assert self._open_metrics is not None, "a resumed run logs before `take_back`"
        return self._open_metrics

    def __enter__(self) -> Self:
        self._shown.enter_context(phases.reminding())
        if get_console().is_terminal:
            self._bar = self._shown.enter_context(progress_bar())
            self._bar.add_task("starting", total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        what = "finished"
        if isinstance(error, SavedForResume):
            what = f"saved to go on: {error}"
            logger.info("%s", what)
        elif error is not None:
            interrupted = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt))
            said = in_short(str(error))
            what = "interrupted" if interrupted else f"{type(error).__name__}: {said}"
            logger.error("run ended early: %s", what)
            if said != str(error):  # the file alone has it whole
                self._log.handle(
                    logger.makeRecord(logger.name, logging.ERROR, "", 0, "%s", (error,), None)
                )
            helps = self.resume_helps and not policy_lost(error)
            if helps and checkpoint_folders(self.path):
                config = shlex.quote(str(self.path / "config.yaml"))
                command = self._record["command"]
                logger.error("resume it with: herl %s %s run.resume=true", command, config)
        with ExitStack() as last:  # whatever fails on the way, the lock is released
            last.callback(self._lock.release)
            last.callback(remove_handler, self._log)
            self._shown.close()
            if self._open_metrics is not None:
                last.callback(_remove_torn, self.path)
                self._open_metrics.close()
                self._record_end(what)  # who is told to end may be killed while trackers send
                self._trackers.close(ended_well=error is None or isinstance(error, SavedForResume))

    def _record_end(self, outcome: str) -> None:
        try:
            record_end(self.path, outcome)
        except (OSError, ValueError) as error:  # what ended the run is said, and this is not it
            logger.warning("%s cannot be completed: %s", self.path / PROVENANCE, error)

    def saw_nodes(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Keep where the run's processes are (`provenance.record_nodes`), also before a resumed
        run has taken back."""
        self._nodes = nodes
        if self.begun and nodes:
            record_nodes(self.path, nodes)

    @property
    def begun(self) -> bool:
        """Whether what the folder holds is this run's: not before a resumed run has taken back."""
        return self._open_metrics is not None

    @property
    def policy(self) -> Path:
        """Where the policy is exported."""
        return self.path / "policy"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's (or evaluation's) metrics, and say the main ones."""
        self._metrics.write(step, values)
        self._trackers.log(step, values)
        if "eval/reward" in values:
            logger.info("%s", evaluation_line(step, values))
        elif self._lines is not None and (line := self._lines.step(step, values)):
            logger.info("%s", line)

    @property
    def history(self) -> tuple[StepMetrics, ...]:
        """All lines of metrics.jsonl so far, those before a resume too."""
        return self._metrics.history

    def sync_metrics(self) -> int:
        """Bring metrics.jsonl to the disk itself; returns its length in bytes."""
        return self._metrics.sync()

    def log_rollouts(
        self, name: str, groups: Sequence[ScoredGroup], rows: Sequence[JoinedRows] = ()
    ) -> None:
        """Write `rollouts/NAME.jsonl` (those of steps only with `train.log_rollouts`), and give the
        trackers some of it as text.

        name: `step_N`, `eval_N`, `eval` or `unfinished`; rows: the groups' joined rows, if any.
        """
        if self._config.train.log_rollouts or not name.startswith("step_"):
            if rows:
                pairs = zip(groups, rows, strict=True)
                records = [group_record(group, row.rows, row.origins) for group, row in pairs]
            else:
                records = [group_record(group) for group in groups]
            write_rollouts(self.path / "rollouts" / f"{name}.jsonl", records)
        if self._config.train.keep_groups and name.startswith("step_"):
            kept = self.path / "rollouts" / f"{name}.groups.gz"
            write_groups(kept, groups, self._record["fingerprints"])
        self._show_samples(name, groups)

    def _show_samples(self, name: str, groups: Sequence[ScoredGroup]) -> None:
        """Of every evaluation, and of every so many steps."""
        options = self._config.tracking
        found = ROLLOUTS.fullmatch(f"{name}.jsonl")
        if found is None or name == "unfinished":
            return
        kind: SamplesOf = "step" if found["kind"] == "step" else "eval"
        step = int(found["number"] or 0)
        every = options.samples_every if kind == "step" else 1
        if every and step % every == 0:
            chosen = groups[: options.samples]
            self._trackers.log_samples(step, kind, [text_sample(group) for group in chosen])

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `NAME` into the folder; it appears whole or not at all."""
        temporary = self.path / f"{name}.tmp"
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / name)

    def progress(self, steps: range, label: str) -> Iterator[int]:
        """Yield `steps`, each of which `log` then says in a line; a terminal also shows a bar and
        what is being done."""
        self._lines = StepLines(label, steps)
        for done, step in enumerate(steps):
            self._show(label, done, len(steps))
            yield step
        self._lines = None
        self._show("finishing", len(steps), len(steps))

    def _show(self, label: str, done: int, total: int) -> None:
        if self._bar is not None:
            (task,) = self._bar.task_ids
            self._bar.update(task, description=label, total=total, completed=done)

    def finish(self, *, before: Evaluated | None, after: Evaluated | None, timers: Timers) -> None:
        """Write summary and learning curve and print the table."""
        from herl_megatron.observability.curves import plot_learning_curve  # matplotlib

        self._shown.close()  # the bar is done with; the table comes after it
        history = self._metrics.history
        summary = build_summary(history, before=before, after=after, seconds=timers.totals())
        self.write_json("summary.json", summary)
        curve = self.path / "learning_curve.png"
        plot_learning_curve(comparable(history), curve, title=self.path.name)
        print_summary(summary, folder=self.path, console=get_console())


def _look(
    config: Config, purpose: Purpose, fingerprints: Mapping[str, str] | None
) -> tuple[Start, Checkpoint | None]:
    """How the run begins and from where; reads all that it will need, and changes nothing."""
    start = plan_start(config, purpose=purpose)
    if start != "resume" or purpose not in TRAINS:
        return start, None
    checkpoint = find_checkpoint(config, fingerprints, purpose=purpose)
    if checkpoint is not None:
        metrics = run_path(config) / "metrics.jsonl"
        read_metrics(metrics, length=checkpoint.driver.metrics_bytes)
    return start, checkpoint


def _remove_torn(path: Path) -> None:
    """What was being written when the run ended, and will not be finished: nobody is left to."""
    shutil.rmtree(path / ".policy.partial", ignore_errors=True)
    for folder in (path / "checkpoints").glob(".step_*.partial"):
        if UNPUBLISHED_STEP.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    written = (path, path / "rollouts", path / "checkpoints")
    for file in own_files(path):
        if file.name.endswith(".tmp") and file.parent in written:
            file.unlink(missing_ok=True)


def _changed_meanwhile(
    config: Config, purpose: Purpose, start: Start, checkpoint: Checkpoint | None
) -> bool:
    """Whether a run began and ended here between the look and the lock."""
    if plan_start(config, purpose=purpose) != start:
        return True
    if checkpoint is None:
        return False
    known = (checkpoint.folder, *checkpoint.damaged)
    return set(checkpoint_folders(run_path(config))[: len(known)]) != set(known)


def _move_aside(path: Path, lock: RunLock) -> RunLock:
    """Give an earlier run another name, and lock a new folder in its place."""
    target = aside(path)
    os.rename(path, target)
    lock.release()
    logger.warning(
        "%s held results and no checkpoint to go on from; they are in %s, and the run starts at the"
        " beginning", path, target,
    )  # fmt: skip
    return RunLock.take(path)


def _remove_run(path: Path) -> None:
    """Remove herl's files of an earlier run. Who is killed on the way leaves neither a checkpoint
    that is half there nor a run that looks finished."""
    (path / "summary.json").unlink(missing_ok=True)
    for folder in checkpoint_folders(path):
        os.rename(folder, folder.with_name(f".{folder.name}.partial"))
    stay = (LOCK_FILE, RUN_FILE)
    remove_files([file for file in own_files(path) if file.name not in stay], path)


def _make_room_for_policy(path: Path) -> None:
    """Nothing may be at `policy`, where one is exported at the end: a folder without files goes,
    what an earlier version exported is moved aside."""
    policy = path / "policy"
    if any(not file.is_dir() for file in policy.rglob("*")):
        os.rename(policy, moved := aside(policy))
        logger.warning("%s was exported by an earlier version; it is in %s", policy, moved)
    elif policy.is_dir():
        shutil.rmtree(policy)


def _take_back(path: Path, checkpoint: Checkpoint) -> None:
    """Remove what the run wrote after the checkpoint; everything was read before."""
    if checkpoint.driver.metrics_bytes:
        os.truncate(path / "metrics.jsonl", checkpoint.driver.metrics_bytes)
    step = checkpoint.driver.step
    later = []
    for file in own_files(path):
        plain = file.name.removesuffix(".tmp")
        if file.parent != path / "rollouts":
            continue
        if (name := ROLLOUTS.fullmatch(plain)) is not None:
            last_kept = {"step": step - 1, "eval": step}.get(name["kind"] or "", -1)
            if int(name["number"] or 0) > last_kept:
                later.append(file)
        elif (name := GROUPS.fullmatch(plain)) is not None and int(name["number"]) >= step:
            later.append(file)
    later += own_policy_files(path / "policy")
    later += [path / name for name in ("summary.json", "learning_curve.png")]
    remove_files(later, path)
