"""Rule checks by name: registration, parameter validation, and one run of one check.

A check is a pure function `(response, *, parameters) -> bool`, or `-> float` for partial credit, a
number in [0, 1] (`rubrics.credit`). Its parameters are typed in its signature and validated before
it runs; it never runs on invented values. Two things can be wrong:
- The parameters do not fit the signature, or nobody (or everybody) meets what they ask for
  (`parameter_problem`): a mistake in the row, refused when prompts are loaded.
- They fit, but their content says nothing that the check can judge (`unreadable`): data as some
  benchmarks hold it. Such rows load; the criterion is unverifiable for every response.

Checks that come with the package run in this process, under a time limit. Those of a user's module
(`load_check_modules`) are neither imported nor run here, but in a child process (`isolated`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

from herl_megatron.rubrics.checks import local
from herl_megatron.rubrics.checks.isolated.modules import CheckModuleError, UserModules
from herl_megatron.rubrics.checks.isolated.wire import CheckLimits
from herl_megatron.rubrics.checks.libraries import library_problem
from herl_megatron.rubrics.checks.local import Check, Mode
from herl_megatron.types import Criterion, CriterionResult

P = ParamSpec("P")
R = TypeVar("R", bound=float)
"""What a check returns: a bool, or a number in [0, 1]."""


@dataclass(frozen=True)
class UserCheck:
    """A check of a user's module; what it is made of is in the child process of `home`."""

    name: str
    parameters: tuple[str, ...]
    requires: tuple[str, ...]
    data: tuple[str, ...]
    module: str
    home: UserModules


# Filled while the modules of this package are imported and a user's are loaded.
_CHECKS: dict[str, Check | UserCheck] = {}


def register(
    name: str,
    *,
    description: str,
    requires: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    judges_blank: bool = False,
    unreadable: Callable[..., str] | None = None,
    pointless: Callable[..., str] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function `(response, typed parameters...) -> bool` as the check `name`; one that
    says `-> float` returns a number in [0, 1], for partial credit.

    `requires` names packages, `data` NLTK resources that it needs: they are made ready before the
    check runs and outside of its time limit. `unreadable` and `pointless` take the parameters and
    say why their content cannot be judged, or why all responses would have the same verdict.

    Raises:
        ValueError: the name is taken, the function cannot be a check, or the description names
            what is no parameter.
    """

    def add(run: Callable[P, R]) -> Callable[P, R]:
        module = run.__module__
        known = _CHECKS.get(name)
        if isinstance(known, UserCheck) and known.module == module:
            return run  # imported here too, by its author: it still runs in its own process
        if known is not None:
            raise ValueError(
                f"the check {name!r} is registered twice: in {_module_of(known)} and in {module};"
                " give one of them another name"
            )
        params = local.params_model(run)
        if problem := local.template_problem(description, tuple(params.model_fields)):
            raise ValueError(f"the description of the check {name!r} {problem}")
        _CHECKS[name] = Check(
            name, run, description, params, requires, data, judges_blank, unreadable, pointless,
            measures=local.measures(run),
        )  # fmt: skip
        return run

    return add


def _module_of(check: Check | UserCheck) -> str:
    return check.module if isinstance(check, UserCheck) else check.run.__module__


def names() -> tuple[str, ...]:
    """Every registered check, sorted."""
    return tuple(sorted(_CHECKS))


def load_check_modules(
    modules: Sequence[str], *, folder: str | None = None, limits: CheckLimits | None = None
) -> None:
    """Make known the checks that a user's modules register (`scoring.check_modules`).

    They are imported in a child process, where their checks run. They may lie in `folder`, by
    default the working directory, which is not on the path of a console script. Modules that are
    loaded already, from there, are left as they are.

    Raises:
        CheckModuleError (a ValueError): a module cannot be found, or raises, exits, hangs or takes
            a name that is taken while it is imported; names the module and, where known, file and
            line.
    """
    if not modules:
        return
    home = UserModules(tuple(modules), folder=folder or os.getcwd(), limits=limits or CheckLimits())
    if any(isinstance(c, UserCheck) and c.home.same_as(home) for c in _CHECKS.values()):
        return
    found = home.load()
    ours = {check.module for check in found}
    kept = {name: check for name, check in _CHECKS.items() if _module_of(check) not in ours}
    if taken := sorted({check.name for check in found} & set(kept)):
        home.close()
        raise CheckModuleError(
            f"scoring.check_modules: the check {taken[0]!r} is registered twice: in"
            f" {_module_of(kept[taken[0]])} and in one of {', '.join(modules)}; give one of them"
            " another name"
        )
    before = _homes()
    _CHECKS.clear()
    _CHECKS.update(kept)
    for check in found:
        _CHECKS[check.name] = UserCheck(
            check.name, check.parameters, check.requires, check.data, check.module, home
        )
    for replaced in set(before) - set(_homes()):
        before[replaced].close()


def _homes() -> dict[int, UserModules]:
    """The loaded modules, each once."""
    return {id(c.home): c.home for c in _CHECKS.values() if isinstance(c, UserCheck)}


def module_file(module: str) -> str:
    """The source file of a module of `load_check_modules`, "" if it has none."""
    for check in _CHECKS.values():
        if isinstance(check, UserCheck) and module in check.home.files:
            return check.home.files[module]
    return ""


def end_user_processes() -> None:
    """End the child processes of users' checks; a later use starts them again.

    From another thread this also ends a call that waits for them.
    """
    for home in _homes().values():
        home.close()


def forget_user_checks() -> None:
    """Undo `load_check_modules`: end the processes, and know the checks no more."""
    end_user_processes()
    for name in [name for name, check in _CHECKS.items() if isinstance(check, UserCheck)]:
        del _CHECKS[name]


def find(name: str) -> Check | UserCheck | None:
    """The check of that name, if there is one."""
    return _CHECKS.get(name)


def is_users(criterion: Criterion) -> bool:
    """Whether the check of a criterion is a user's."""
    return isinstance(_CHECKS.get(criterion.check), UserCheck)


def get(name: str) -> Check | UserCheck:
    """The check of that name; ValueError names the nearest one if there is none."""
    check = _CHECKS.get(name)
    if check is None:
        raise ValueError(
            f"unknown check {name!r}; did you mean {_nearest(name)!r}? A check of your own comes"
            " from a module in scoring.check_modules (`herl score --check-module`)"
        )
    return check


def _nearest(name: str) -> str:
    """The known name closest to `name`, whole or after the name of its family."""
    plain = {known.casefold(): known for known in names()}
    asked = name.casefold()
    if near := get_close_matches(asked, plain, n=1, cutoff=0.6):
        return plain[near[0]]
    last = {re.split("[/:]", known)[-1]: known for known in plain}
    (near_last,) = get_close_matches(re.split("[/:]", asked)[-1], last, n=1, cutoff=0.0)
    return plain[last[near_last]]


def parameter_problem(criterion: Criterion) -> str:
    """Why the parameters of a rule criterion do not fit its check, or the empty string.

    Missing, unknown, of a wrong type or out of range, or such that every response, or none, does
    what they ask for: mistakes in the row. Content that the check cannot read
    (`Check.unreadable`) is not one. Of a user's check, also why its parameters cannot
    be looked at or its description not be filled from them.
    """
    check = get(criterion.check)
    if isinstance(check, UserCheck):
        return check.home.look(criterion).problem
    return local.parameter_problem(check, criterion)


def unreadable(criterion: Criterion) -> str:
    """Why the content of parameters that fit says nothing to a check of the package, or ""."""
    check = get(criterion.check)
    assert isinstance(check, Check), f"{check.name} is a user's: only a run of it can tell"
    return local.unreadable(check, criterion)


def describe(criterion: Criterion) -> str:
    """The requirement of a rule criterion as an instruction, from its check and parameters."""
    check = get(criterion.check)
    if isinstance(check, UserCheck):
        return check.home.look(criterion).description
    return local.describe(check, criterion)


def prepare(needed: Sequence[str]) -> None:
    """Make packages and resources ready (`Check.requires`, `Check.data`) before they are used.

    What cannot be made ready leaves its checks unverifiable, with the reason.
    """
    for name in needed:
        library_problem(name)


def run_check(
    criterion: Criterion, response: str, *, mode: Mode = "strict", timeout_s: float | None = None
) -> CriterionResult:
    """The verdict of one rule criterion on one response.

    `loose` accepts the response if any of its variants follows. A blank response follows nothing
    (unless the check judges it). Unverifiable for every response: unknown check, missing or broken
    package or data, missing, wrong or unreadable parameters. Unverifiable for this one: no result
    within `timeout_s`, whatever the check raised, or something else than a bool (or, of one that
    says `-> float`, a number in [0, 1]); of a user's check, also the end of its process or more
    memory than it may take.

    Raises:
        CheckModuleError: a user's module cannot be imported any more.
    """
    try:
        check = get(criterion.check)
    except ValueError as error:
        return local.left_out(criterion, str(error))
    if isinstance(check, UserCheck):
        (result,) = check.home.run([criterion], response, mode=mode, timeout_s=timeout_s)
        return result
    return local.run_check(check, criterion, response, mode=mode, timeout_s=timeout_s)


def run_user_checks(
    criteria: Sequence[Criterion], response: str, *, mode: Mode, timeout_s: float
) -> dict[str, CriterionResult]:
    """The results of those criteria whose checks are a user's, by criterion.

    Needs no main thread. Raises as `run_check`.
    """
    by_home: dict[int, tuple[UserModules, list[Criterion]]] = {}
    for criterion in criteria:
        check = _CHECKS.get(criterion.check)
        if isinstance(check, UserCheck):
            by_home.setdefault(id(check.home), (check.home, []))[1].append(criterion)
    return {
        result.criterion_id: result
        for home, asked in by_home.values()
        for result in home.run(asked, response, mode=mode, timeout_s=timeout_s)
    }
