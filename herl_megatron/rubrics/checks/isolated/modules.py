"""A user's modules: loaded, asked and run in a child process, never in this one."""

from __future__ import annotations

import json
import logging
import math
import pickle
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from herl_megatron.rubrics.checks import local
from herl_megatron.rubrics.checks.isolated.process import ChildGone, ChildProcess
from herl_megatron.rubrics.checks.isolated.wire import (
    CheckLimits,
    Load,
    LoadReward,
    Look,
    Reply,
    Run,
    Said,
)
from herl_megatron.rubrics.checks.local import Mode
from herl_megatron.rubrics.credit import measured_result
from herl_megatron.types import Criterion, CriterionResult, Verdict

_log = logging.getLogger(__name__)
T = TypeVar("T")
GRACE_S = 1.0
"""A child that is this much over a check's limit, which it enforces itself, is killed."""
_LOOK_S = 5.0
_AGAIN_AFTER_S = 0.5
_VERDICTS = {Said.FOLLOWED: Verdict.FOLLOWED, Said.NOT_FOLLOWED: Verdict.NOT_FOLLOWED}


class CheckModuleError(ValueError):
    """A user's module cannot be imported (any more): named, with file and line where known."""


@dataclass(frozen=True)
class Found:
    """A check that a module registers."""

    name: str
    parameters: tuple[str, ...]
    requires: tuple[str, ...]
    data: tuple[str, ...]
    module: str


@dataclass(frozen=True)
class Looked:
    """What is known of a criterion without a response: `problem` of its parameters, or ""."""

    problem: str
    description: str


class UserModules:
    """Modules that are imported together into one child, which their checks share.

    `files` are their sources, by module. Several threads may call.
    """

    def __init__(self, modules: tuple[str, ...], *, folder: str, limits: CheckLimits) -> None:
        self._load = Load(modules, folder, limits)
        self._path = tuple(sys.path)
        self._process = ChildProcess(limits)
        self._turn = threading.Lock()
        self._stops = 0
        self._looked: dict[bytes, Looked] = {}
        self.files: dict[str, str] = {}

    def same_as(self, other: UserModules) -> bool:
        """Whether both would load the same."""
        return self._load == other._load and self._path == other._path

    def load(self) -> list[Found]:
        """Import the modules.

        Raises:
            CheckModuleError: why they cannot be; see `registry.load_check_modules`.
        """
        with self._turn:
            return self._start()

    def look(self, criterion: Criterion) -> Looked:
        """Validate the parameters of a criterion and describe it.

        Raises:
            CheckModuleError: the modules cannot be imported any more.
        """
        criterion = _plain(criterion)
        key = pickle.dumps((criterion.check, criterion.params))
        if key not in self._looked:
            with self._turn:
                looked = self._look(criterion)
            if looked is None:  # its process ended
                return Looked("its parameters could not be looked at", _named(criterion))
            self._looked[key] = looked
        return self._looked[key]

    def run(
        self, criteria: Sequence[Criterion], text: str, *, mode: Mode, timeout_s: float | None
    ) -> list[CriterionResult]:
        """One result per criterion, in order; see `registry.run_check`."""
        asked = [_plain(criterion) for criterion in criteria]
        results: list[CriterionResult] = []
        died_at = -1
        with self._turn:
            stops = self._stops
            while len(results) < len(asked):
                left = asked[len(results) :]
                try:
                    self._ensure()
                    self._run(Run(tuple(left), text, mode, timeout_s), results)
                except ChildGone as gone:
                    # A death may be the doing of an earlier check, or of a machine without memory.
                    again, died_at = gone.died and died_at != len(results), len(results)
                    if self._stops != stops:
                        rest = asked[len(results) :]
                        results += [local.failed(c, f"{c.check} was stopped") for c in rest]
                    elif not again:
                        results.append(_ended(asked[len(results)], gone, timeout_s))
                except BaseException:  # Interrupted: what the child says next is for nobody.
                    self._process.end()
                    raise
        return results

    def close(self) -> None:
        """End the processes; the next call starts them again. Ends a call in another thread."""
        self._stops += 1
        self._process.close()

    def _run(self, request: Run, results: list[CriterionResult]) -> None:
        limit_s = math.inf if request.timeout_s is None else request.timeout_s + GRACE_S
        number = self._process.ask(request, len(request.criteria))
        for index, criterion in enumerate(request.criteria):
            reply = self._process.reply(number + index, limit_s)
            results.append(_result(criterion, reply))
            if reply.worn:
                self._process.end()
                return

    def _look(self, criterion: Criterion) -> Looked | None:
        for _ in range(2):
            try:
                self._ensure()
                reply = self._process.reply(self._process.ask(Look(criterion)), _LOOK_S)
            except ChildGone as gone:
                if not gone.died:
                    return Looked(f"looking at its parameters {gone.how}", _named(criterion))
                continue
            except BaseException:  # Interrupted: what the child says next is for nobody.
                self._process.end()
                raise
            if reply.said is Said.DESCRIBED:
                return Looked("", reply.text)
            return Looked(reply.text or "no reason is given", _named(criterion))
        return None

    def _ensure(self) -> None:
        """A child with the modules, started outside of every check's limit."""
        if self._process.alive:
            return
        try:
            self._start()
        except CheckModuleError as error:
            _log.warning("%s; tried once more", error)
            time.sleep(_AGAIN_AFTER_S)
            self._start()

    def _start(self) -> list[Found]:
        checks, self.files = load_in(
            self._process, self._load, _read_found, of=("scoring.check_modules", self._load.modules)
        )
        return checks


def load_in(
    process: ChildProcess,
    request: Load | LoadReward,
    read: Callable[[Any], T],
    *,
    of: tuple[str, Sequence[str]],
) -> T:
    """A new child of `process` with what `request` imports; what `read` makes of its answer.

    of: the configuration's key and the names that it has, for messages.

    Raises:
        CheckModuleError: why it cannot be imported.
    """
    key, names = of
    doing = "starting a process for them"
    try:
        process.start()
        number = process.ask(request)
        while True:
            reply = process.reply(number, request.limits.import_s + GRACE_S)
            if reply.said is not Said.IMPORTING:
                break
            doing = f"importing {reply.text!r}" if reply.text else "preparing what they need"
        if reply.said is not Said.LOADED:
            process.end()
            said = reply.text
            raise CheckModuleError(said if said.startswith(f"{key}: ") else f"{key}: {said}")
        found = read(json.loads(reply.text))
    except ChildGone as gone:
        raise CheckModuleError(f"{key} ({', '.join(names)}): {doing} {gone.how}") from gone
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        process.end()
        raise CheckModuleError(f"{key}: {doing} broke the process that it happened in") from error
    except BaseException:
        process.end()
        raise
    process.settle()
    return found


def _read_found(found: Any) -> tuple[list[Found], dict[str, str]]:
    """The checks, and the modules' files."""
    checks = [
        Found(
            str(check["name"]),
            tuple(map(str, check["parameters"])),
            tuple(map(str, check["requires"])),
            tuple(map(str, check["data"])),
            str(check["module"]),
        )
        for check in found["checks"]
    ]
    return checks, {str(name): str(file) for name, file in found["files"].items()}


def _plain(criterion: Criterion) -> Criterion:
    """As it can be sent: parameters may be any mapping."""
    return replace(criterion, params=dict(criterion.params))


def _named(criterion: Criterion) -> str:
    return f"Follow the rule {criterion.check}."


def _result(criterion: Criterion, reply: Reply) -> CriterionResult:
    if reply.said is Said.LEFT_OUT:
        return local.left_out(criterion, reply.text)
    if reply.said is Said.MEASURED:
        return _measured(criterion, reply.text)
    verdict = _VERDICTS.get(reply.said, Verdict.UNVERIFIABLE)
    return CriterionResult(criterion.id, verdict, reply.text)


def _measured(criterion: Criterion, text: str) -> CriterionResult:
    """Looked at once more: the child runs code of others."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        return local.failed(criterion, f"{criterion.check} answered what is no number in [0, 1]")
    return measured_result(criterion.id, value)


def _ended(criterion: Criterion, gone: ChildGone, timeout_s: float | None) -> CriterionResult:
    if gone.late:
        return local.late(criterion, timeout_s)
    return local.failed(criterion, f"{criterion.check} {gone.how}")
