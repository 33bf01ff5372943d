"""The process in which a user's modules are imported and their checks run."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from json import dumps  # what a module does to `json` does not reach it

from herl_megatron.config.hooks import Hook, error_place
from herl_megatron.rubrics.checks import local, registry
from herl_megatron.rubrics.checks.isolated.gauge import Gauge
from herl_megatron.rubrics.checks.isolated.rewards import late, load_reward, rewards_of
from herl_megatron.rubrics.checks.isolated.wire import (
    Load,
    LoadReward,
    Look,
    Reply,
    Reward,
    Run,
    Said,
    pack_reply,
    read_request,
)
from herl_megatron.rubrics.checks.time_limit import CheckTimeout, run_limited
from herl_megatron.types import Criterion, CriterionResult, Verdict

_OF_VERDICT = {Verdict.FOLLOWED: Said.FOLLOWED, Verdict.NOT_FOLLOWED: Said.NOT_FOLLOWED}


def serve(connection: socket.socket) -> None:
    """Answer requests, the first a `Load`; raises EOFError when there are no more."""
    child = _Child(connection)
    while True:
        number, request = read_request(child.receive)
        match request:
            case Load():
                child.load(number, request)
            case Look():
                child.look(number, request.criterion)
            case Run():
                child.run(number, request)
            case LoadReward():
                child.load_reward(number, request)
            case Reward():
                child.reward(number, request)


class _Child:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._gauge: Gauge | None = None
        self._reward: Hook | None = None

    def receive(self, size: int) -> bytes:
        """Exactly so many bytes; EOFError if there are fewer."""
        parts = bytearray()
        while len(parts) < size:
            part = self._connection.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _reply(self, number: int, said: Said, text: str = "", *, worn: bool = False) -> None:
        if os.getpid() != self._pid:
            os._exit(1)  # a fork that came back out of a check
        self._connection.sendall(pack_reply(Reply(number, said, worn, text)))

    def load(self, number: int, request: Load) -> None:
        """Import the modules and say which checks they have."""
        gauge = self._gauge = Gauge(request.limits)
        if request.folder not in sys.path:
            # Last: no file that happens to lie there may stand in for an installed package.
            sys.path.append(request.folder)
        before = set(registry.names())
        for module in request.modules:
            self._reply(number, Said.IMPORTING, module)
            if problem := _import(module, request):
                self._reply(number, Said.REFUSED, problem)
                return
        self._reply(number, Said.IMPORTING)
        checks = [registry.get(name) for name in registry.names() if name not in before]
        ours = [check for check in checks if isinstance(check, local.Check)]
        for check in ours:
            registry.prepare(local.needs(check))
        found = {
            "checks": [
                {
                    "name": check.name,
                    "parameters": check.parameters,
                    "requires": check.requires,
                    "data": check.data,
                    "module": check.run.__module__,
                }
                for check in ours
            ],
            "files": {name: getattr(sys.modules[name], "__file__", "") or ""
                      for name in request.modules},
        }  # fmt: skip
        gauge.settle()
        self._reply(number, Said.LOADED, dumps(found))

    def look(self, number: int, criterion: Criterion) -> None:
        """Whether the parameters fit, and what they ask for."""
        doing = "looking at its parameters"
        try:
            problem = registry.parameter_problem(criterion)
            if problem:
                self._reply(number, Said.PROBLEM, problem)
                return
            doing = "filling its description"
            text = registry.describe(criterion)
        except BaseException as error:  # A user's validators and formats may raise anything.
            self._reply(number, Said.PROBLEM, f"{doing} raised {local.error_text(error)}")
            return
        self._reply(number, Said.DESCRIBED, text)

    def run(self, number: int, request: Run) -> None:
        """One reply per criterion, until one leaves this process worn."""
        assert self._gauge is not None, "the modules are loaded first"
        for index, criterion in enumerate(request.criteria):
            # What an earlier check did to them must not take this one's limit away.
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            result = _result(criterion, request)
            over = self._gauge.exceeded()
            if over:
                result = local.failed(criterion, f"{criterion.check} {over}")
            said, text = _OF_VERDICT.get(result.verdict, Said.UNVERIFIABLE), result.reason
            if result.for_every_response:
                said = Said.LEFT_OUT
            elif result.grade is not None:
                said, text = Said.MEASURED, repr(result.grade)
            # A limit that went off in an import or a table leaves the library half loaded.
            cut = result == local.late(criterion, request.timeout_s)
            worn = bool(over) or cut or self._gauge.threads_left()
            self._reply(number + index, said, text, worn=worn)
            if worn:
                return

    def load_reward(self, number: int, request: LoadReward) -> None:
        """Import the function and say where it is."""
        gauge = self._gauge = Gauge(request.limits)
        self._reply(number, Said.IMPORTING, request.name.partition(":")[0])
        found = load_reward(request)
        if isinstance(found, str):
            self._reply(number, Said.REFUSED, found)
            return
        self._reward = found
        gauge.settle()
        self._reply(number, Said.LOADED, dumps({"file": found.file}))

    def reward(self, number: int, request: Reward) -> None:
        """The rewards of one group."""
        assert self._gauge is not None and self._reward is not None, "the function is loaded first"
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        said, text = rewards_of(self._reward, request)
        over = self._gauge.exceeded()
        if over:
            said, text = Said.PROBLEM, over
        worn = bool(over) or text == late(request.timeout_s) or self._gauge.threads_left()
        self._reply(number, said, text, worn=worn)


def _result(criterion: Criterion, request: Run) -> CriterionResult:
    try:
        return registry.run_check(
            criterion, request.text, mode=request.mode, timeout_s=request.timeout_s
        )
    except BaseException as error:  # Process border; what came out of a check's own code.
        return local.failed(criterion, f"{criterion.check} raised {local.error_text(error)}")


def _import(module: str, request: Load) -> str:
    """Import it; what went wrong, as the end of a sentence, or ""."""
    if not all(part.isidentifier() for part in module.split(".")):
        return (
            f"{module!r} is no name of a module: write it as after `import`, without folder or .py"
        )
    places: list[str] = []

    def attempt() -> str:
        try:
            importlib.import_module(module)
        except CheckTimeout as late:
            places.append(error_place(late, module))
            raise
        except BaseException as error:  # Process border: it may raise anything, and exit.
            return _import_problem(module, request.folder, error)
        return ""

    finished = run_limited(attempt, request.limits.import_s)
    if finished is not None:
        return finished.value
    place = f" (it was{places[0]})" if places and places[0] else ""
    return f"importing {module!r} took longer than {request.limits.import_s:g} s{place}"


def _import_problem(module: str, folder: str, error: BaseException) -> str:
    place = error_place(error, module)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"cannot import {module!r} ({error}{place}); install it, put its folder on PYTHONPATH"
            f" or start where it lies (looked in {folder} too)"
        )
    return f"importing {module!r} failed{place}: {local.error_text(error)}"
