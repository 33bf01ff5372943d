"""Run a chain: every stage a process of its own; what is done is skipped, a failure ends it."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from herl_megatron.config.purpose import RESUMES
from herl_megatron.reproduce.needs import missing_inputs
from herl_megatron.reproduce.row_record import RowRecord, changed, read_record, write_record
from herl_megatron.reproduce.stage import Stage
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


def run_stages(started: Started, stages: Sequence[Stage], *, only: str = "") -> int:
    """Run what is not done, in order; the exit code of the first that fails, else 0.

    only: the name of a stage, or `eval` and the like for all whose names begin so; those before it
    must be done.

    Raises:
        ValueError: inputs are missing, another process runs this row, the folder was begun with
            other settings, or there is no such stage. Nothing was started.
    """
    chosen = chosen_stages(stages, only)
    _require_before(stages, chosen)
    lock = _lock(started.folder)
    try:
        _require_same(started, stages)
        if problems := started.problems(chosen):
            listed = "".join(f"\n  - {problem}" for problem in problems)
            raise ValueError(f"nothing was started; {len(problems)} missing:{listed}")
        return _run(started, stages, chosen)
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
    first = stages.index(chosen[0])
    before = [stage for stage in stages[:first] if stage not in chosen and not stage.is_done()]
    if missing := [stage.name for stage in before if _feeds(stage, chosen)]:
        raise ValueError(
            f"--only {chosen[0].name}: {', '.join(missing)} must be done before; leave --only away"
        )


def _feeds(stage: Stage, chosen: Sequence[Stage]) -> bool:
    """Whether one of `chosen` is given what the stage makes; a benchmark's rows are named in the
    files of `configs/`."""
    makes = str(stage.makes)
    named = any(makes in word for later in chosen for word in later.argv)
    return named or any(f"eval_{stage.name.removeprefix('data_')}" == one.name for one in chosen)


def _run(started: Started, stages: Sequence[Stage], chosen: Sequence[Stage]) -> int:
    for stage in chosen:
        place = f"{stages.index(stage) + 1}/{len(stages)} {stage.name}"
        if stage.is_done():
            started.say(f"{place}: done before, {stage.makes}")
            continue
        with _shared(stage, started.folder):
            if stage.is_done():  # another row made it while this one waited to look
                continue
            _begin(started, stage)
            started.say(f"{place}: {stage.command}")
            code = started.child(stage.argv)
        if code == 0 and not stage.is_done():
            lacks = ", ".join(str(path) for path in stage.finished if not path.is_file())
            started.say(f"{place}: ended well without {lacks}")
            code = 1
        if code:
            what = f" ({_MEANS[code]})" if code in _MEANS else ""
            started.say(f"{place} ended with exit code {code}{what}. Go on with:")
            started.say(f"  {shlex.join(started.again)}")
            return code
    return 0


def _record(started: Started, home: Path) -> RowRecord:
    """What a folder is recorded as: the row's own, or that of a stage which rows share."""
    return started.record if home == started.folder else RowRecord("", started.record.scale, "")


def _begin(started: Started, stage: Stage) -> None:
    """Keep by which command the stage is made."""
    earlier = read_record(stage.home)
    stages = dict(earlier.stages) if earlier else {}
    stages[stage.name] = list(stage.argv)
    write_record(stage.home, replace(_record(started, stage.home), stages=stages))


def _require_same(started: Started, stages: Sequence[Stage]) -> None:
    for home in dict.fromkeys(stage.home for stage in stages):
        if (earlier := read_record(home)) is None:
            continue
        own = [stage for stage in stages if stage.home == home]
        if said := changed(earlier, _record(started, home), own):
            raise ValueError(
                f"{home} holds other results: {said}. Give the same as then, or another --dir"
            )


def _lock(folder: Path) -> RunLock:
    try:
        return RunLock.take(folder)
    except ValueError as error:
        said = str(error).removeprefix("run.dir/run.name: ").partition(";")[0]
        raise ValueError(
            f"{said.replace('another run is writing', 'another `herl reproduce` is at work')}; wait"
            " for its end, or give another --dir"
        ) from error


@contextmanager
def _shared(stage: Stage, folder: Path) -> Iterator[None]:
    """The lock of a stage that other rows share; the row's own is held already."""
    if stage.home == folder:
        yield
        return
    lock = _lock(stage.home)
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
