"""Run a chain: every stage a process of its own; what is done is skipped, a failure ends it."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from herl_megatron.config.purpose import RESUMES
from herl_megatron.reproduce.lineage import read_now, why_stale
from herl_megatron.reproduce.needs import missing_inputs
from herl_megatron.reproduce.row_record import RowRecord, changed, read_record, write_record
from herl_megatron.reproduce.stage import Stage
from herl_megatron.reproduce.stale import is_standing, move_aside, require_fresh, require_redo
from herl_megatron.run.lock import RunLock

SAVED = 75
"""Exit code of who was asked to stop, as of `herl train`."""
_MEANS = {
    2: "its input has to be mended",
    3: "paused: the judge's budget is spent",
    SAVED: "stopped on request, and saved",
    130: "interrupted",
}


@dataclass(frozen=True)
class Started:
    """A chain as it was asked for.

    again: the command line that goes on with it. say: prints a line. child: runs one `herl` with
    what follows it, and returns its exit code. problems: why the stages that are to run cannot.
    """

    folder: Path
    record: RowRecord
    again: Sequence[str]
    say: Callable[[str], object]
    child: Callable[[Sequence[str]], int]
    problems: Callable[[Sequence[Stage]], Sequence[str]] = missing_inputs


def run_stages(
    started: Started, stages: Sequence[Stage], *, only: str = "", redo: bool = False
) -> int:
    """Run what is not done, in order; the exit code of the first that fails, else 0.

    only: the name of a stage, or `eval` and the like for all whose names begin so; those before it
    must be done. redo: stages that do not follow any more from those before them are moved aside
    and made again.

    Raises:
        ValueError: inputs are missing, another process runs this row, the folder was begun with
            other settings, or there is no such stage; stages are stale, or rows were prepared in
            another way. Nothing was started, but for rows whose making told that.
    """
    chosen = chosen_stages(stages, only)
    _require_before(stages, chosen)
    lock = _lock(started.folder)
    try:
        stale = require_fresh(stages, chosen, redo=redo)
        _require_same(started, stages, stale)
        to_run = [replace(stage, redone=stage.name in stale) for stage in chosen]
        if problems := started.problems(to_run):
            listed = "".join(f"\n  - {problem}" for problem in problems)
            raise ValueError(f"nothing was started; {len(problems)} missing:{listed}")
        return _run(started, stages, chosen, redo)
    finally:
        lock.release()


def chosen_stages(stages: Sequence[Stage], only: str) -> list[Stage]:
    """Those of `--only`.

    Raises:
        ValueError: no stage is called so.
    """
    chosen = [
        stage
        for stage in stages
        if not only or stage.name == only or stage.name.startswith(f"{only}_")
    ]
    if not chosen:
        names = ", ".join(stage.name for stage in stages)
        raise ValueError(f"--only {only}: this row has no such stage; it has {names}")
    return chosen


def _require_before(stages: Sequence[Stage], chosen: Sequence[Stage]) -> None:
    read = {name for stage in chosen for name in stage.reads}
    before = [stage for stage in stages if stage.name in read and stage not in chosen]
    if missing := [stage.name for stage in before if not stage.is_done()]:
        raise ValueError(
            f"--only {chosen[0].name}: {', '.join(missing)} must be done before; leave --only away"
        )


def _run(started: Started, stages: Sequence[Stage], chosen: Sequence[Stage], redo: bool) -> int:
    for stage in chosen:
        place = f"{stages.index(stage) + 1}/{len(stages)} {stage.name}"
        if is_standing(stage, stages):
            started.say(f"{place}: done before, {stage.makes}")
            continue
        with _shared(stage, started.folder):
            if is_standing(stage, stages):  # another row made it while this one waited to look
                continue
            if why := why_stale(stage, stages):
                require_redo({stage.name: why}, redo=redo)
                started.say(f"{place}: {why}; moved to {move_aside(stage)}")
            _begin(started, stage, stages)
            started.say(f"{place}: {stage.command}")
            code = started.child(stage.argv)
        if code == 0 and not stage.is_done():
            lacks = ", ".join(str(path) for path in stage.finished if not path.is_file())
            started.say(f"{place}: ended well without {lacks}")
            code = 1
        if code:
            _say_how_to_go_on(started, place, code)
            return code
    return 0


def _say_how_to_go_on(started: Started, place: str, code: int) -> None:
    what = f" ({_MEANS[code]})" if code in _MEANS else ""
    started.say(f"{place} ended with exit code {code}{what}. Go on with:")
    started.say(f"  {shlex.join(started.again)}")


def _record(started: Started, home: Path) -> RowRecord:
    """What a folder is recorded as: the row's own, or that of a stage which rows share."""
    return started.record if home == started.folder else RowRecord("", started.record.scale, "")


def _begin(started: Started, stage: Stage, stages: Sequence[Stage]) -> None:
    """Keep by which command the stage is made, and from what."""
    if stage.differs is not None:
        return
    earlier = read_record(stage.home) or RowRecord("", "", "")
    commands = {**earlier.stages, stage.name: list(stage.argv)}
    read = {**earlier.read, stage.name: read_now(stage, stages)}
    write_record(stage.home, replace(_record(started, stage.home), stages=commands, read=read))


def _require_same(started: Started, stages: Sequence[Stage], redone: Collection[str]) -> None:
    recorded = [stage for stage in stages if stage.differs is None]
    for home in dict.fromkeys(stage.home for stage in recorded):
        if (earlier := read_record(home)) is None:
            continue
        own = [one for one in recorded if one.home == home and one.name not in redone]
        if said := changed(earlier, _record(started, home), own):
            raise ValueError(
                f"{home} holds other results: {said}. Give the same as then, or another --dir"
            )


def _lock(folder: Path, *, instead: str = ", or give another --dir") -> RunLock:
    try:
        return RunLock.take(folder)
    except ValueError as error:
        said = str(error).removeprefix("run.dir/run.name: ").partition(";")[0]
        raise ValueError(
            f"{said.replace('another run is writing', 'another `herl reproduce` is at work')}; wait"
            f" for its end{instead}"
        ) from error


@contextmanager
def _shared(stage: Stage, folder: Path) -> Iterator[None]:
    """The lock of a stage that other rows share; the row's own is held already."""
    if stage.home == folder:
        yield
        return
    lock = _lock(stage.home, instead="")
    try:
        yield
    finally:
        lock.release()


class Children:
    """The stages' processes, one at a time, by this Python; what they print is passed on.

    SIGTERM goes to the stage under way. SIGUSR1 asks to stop: a stage that can save hears it and
    ends with exit code 75, another is waited for, and no further one is started.
    """

    def __init__(self) -> None:
        self.asked_to_stop = False
        self._process: subprocess.Popen[bytes] | None = None
        self._saves = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear both signals inside the block."""
        before = {
            signal.SIGUSR1: signal.signal(signal.SIGUSR1, self._stop),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._end),
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, argv: Sequence[str]) -> int:
        """One `herl`; its exit code, or 128 and the signal that ended it, as shells have it."""
        if self.asked_to_stop:
            return SAVED
        self._saves = argv[0] in RESUMES
        self._process = subprocess.Popen([sys.executable, "-m", "herl_megatron.cli", *argv])
        while True:
            try:
                code = self._process.wait()
                break
            except KeyboardInterrupt:  # the terminal told the child too, which ends its workers
                continue
        self._process = None
        return SAVED if self._ended_unheard(code) else code if code >= 0 else 128 - code

    def _ended_unheard(self, code: int) -> bool:
        """Whether a stage was asked to stop before it could hear, so that the signal ended it; it
        goes on from what it had saved."""
        return self.asked_to_stop and code == -signal.SIGUSR1

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if self._process is not None and self._saves:
            self._process.send_signal(number)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            raise SystemExit(128 + number)
        self.asked_to_stop = True
        self._process.send_signal(number)
