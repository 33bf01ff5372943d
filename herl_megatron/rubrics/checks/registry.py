"""Rule checks by name: registration, parameter validation, and one run of one check.

A check is a pure function `(response, *, parameters) -> bool`. Its parameters are typed in its
signature and validated before it runs; it never runs on invented values. Two things can be wrong:
- The parameters do not fit the signature (`parameter_problem`): a mistake in the row, refused when
  prompts are loaded.
- They fit, but their content says nothing that the check can judge (`unreadable`): data as some
  benchmarks hold it. Such rows load; the criterion is unverifiable for every response.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, ParamSpec, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from herl_megatron.rubrics.checks import nltk_tools
from herl_megatron.rubrics.checks.time_limit import CheckTimeout, time_limit
from herl_megatron.types import Criterion, CriterionResult, Verdict

P = ParamSpec("P")


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compilable)]
"""Type of a parameter that is used as a regular expression, as the data sets do with keywords."""
Relation = Literal["at least", "less than"]
"""How a count is compared: >= or strictly <."""
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Mode = Literal["strict", "loose"]
"""What is judged: the response as it is, or the best of its variants (`_variants`)."""


@dataclass(frozen=True)
class Check:
    """A registered check.

    `description` is a template over the parameters, an instruction to the writer; lists are
    joined by commas. `requires` names modules and `data` NLTK resources without which the check
    cannot run. A blank response follows nothing unless `judges_blank`. `unreadable` takes the
    valid parameters and says why their content cannot be judged, or returns the empty string.
    """

    name: str
    run: Callable[..., bool]
    description: str
    params: type[BaseModel]
    requires: tuple[str, ...]
    data: tuple[str, ...]
    judges_blank: bool
    unreadable: Callable[..., str] | None


# Filled while the modules of this package (and a user's own) are imported, read-only afterwards.
_CHECKS: dict[str, Check] = {}


def register(
    name: str,
    *,
    description: str,
    requires: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    judges_blank: bool = False,
    unreadable: Callable[..., str] | None = None,
) -> Callable[[Callable[P, bool]], Callable[P, bool]]:
    """Register a function `(response, typed parameters...) -> bool` as the check `name`."""

    def add(run: Callable[P, bool]) -> Callable[P, bool]:
        assert name not in _CHECKS, f"the check {name!r} is registered twice"
        params = _params_model(run)
        _CHECKS[name] = Check(
            name, run, description, params, requires, data, judges_blank, unreadable
        )
        return run

    return add


def _params_model(run: Callable[..., bool]) -> type[BaseModel]:
    """A pydantic model of the parameters of `run` after the response; further keys are refused.

    Raises ValueError for a parameter without a type, which could not be validated.
    """
    hints = get_type_hints(run, include_extras=True)
    _response, *parameters = inspect.signature(run).parameters.values()
    untyped = [parameter.name for parameter in parameters if parameter.name not in hints]
    if untyped:
        raise ValueError(
            f"the check {run.__name__!r} has parameters without a type: {', '.join(untyped)};"
            " annotate them, e.g. `lines: int`"
        )
    fields: dict[str, Any] = {
        parameter.name: (
            hints[parameter.name],
            ... if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for parameter in parameters
    }
    return create_model("Params", __config__=ConfigDict(extra="forbid"), **fields)


def names() -> tuple[str, ...]:
    """Every registered check, sorted."""
    return tuple(sorted(_CHECKS))


def load_check_modules(modules: Sequence[str], *, folder: str | None = None) -> None:
    """Import modules that register further checks (`scoring.check_modules`).

    They may lie in `folder`, by default the working directory, which is not on the path of a
    console script. Raises ValueError for a module that cannot be found.
    """
    folder = os.getcwd() if folder is None else folder
    with _searched_last(folder):
        for module in modules:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"scoring.check_modules: cannot import {module!r} ({error}); install it, put "
                    f"its folder on PYTHONPATH or start where it lies (looked in {folder} too)"
                ) from error


@contextmanager
def _searched_last(folder: str) -> Iterator[None]:
    """`folder` at the end of the path and only for the block: no file that happens to lie there
    may stand in for an installed package.
    """
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def get(name: str) -> Check:
    """The check of that name; ValueError names the nearest one if there is none."""
    check = _CHECKS.get(name)
    if check is None:
        near = get_close_matches(name, _CHECKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known checks: {', '.join(names())}"
        raise ValueError(f"unknown check {name!r}; {hint}")
    return check


def parameter_problem(criterion: Criterion) -> str:
    """Why the parameters of a rule criterion do not fit its check, or the empty string.

    Missing, unknown, of a wrong type or out of range: mistakes in the row. Content that the check
    cannot read (`Check.unreadable`) is not one.
    """
    try:
        _arguments(get(criterion.check), criterion)
    except ValidationError as error:
        return _first_problem(error)
    return ""


def describe(criterion: Criterion) -> str:
    """The requirement of a rule criterion as an instruction, from its check and parameters."""
    check = get(criterion.check)
    try:
        arguments = _arguments(check, criterion)
    except ValidationError:
        return f"Follow the rule {criterion.check}."
    shown = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in arguments.items()
    }
    return check.description.format(**shown)


def run_check(
    criterion: Criterion, response: str, *, mode: Mode = "strict", timeout_s: float | None = None
) -> CriterionResult:
    """The verdict of one rule criterion on one response.

    `loose` accepts the response if any of its variants follows. A blank response follows nothing
    (unless the check judges it). Unverifiable for every response: unknown check, missing module
    or data, missing, wrong or unreadable parameters. Unverifiable for this one: no result within
    `timeout_s`, or the check returned something else than a bool.
    """
    try:
        check = get(criterion.check)
        arguments = _arguments(check, criterion)
    except ValidationError as error:
        return _left_out(criterion, f"parameters of {criterion.check}: {_first_problem(error)}")
    except ValueError as error:
        return _left_out(criterion, str(error))
    unreadable = check.unreadable(**arguments) if check.unreadable else ""
    problem = unreadable or _missing(check)
    if problem:
        return _left_out(criterion, f"{check.name}: {problem}")
    texts = [response] if mode == "strict" else _variants(response)
    if not check.judges_blank:
        texts = [text for text in texts if text.strip()]
    try:
        with time_limit(timeout_s):
            verdict = _verdict(check, texts, arguments)
    except CheckTimeout:
        reason = f"{check.name} gave no verdict within {timeout_s:g} s"
        return CriterionResult(criterion.id, Verdict.UNVERIFIABLE, reason)
    if not isinstance(verdict, bool):
        reason = (
            f"{check.name} returned {verdict!r:.40} ({type(verdict).__name__}); a check must "
            "return True or False"
        )
        return CriterionResult(criterion.id, Verdict.UNVERIFIABLE, reason)
    return CriterionResult(criterion.id, Verdict.FOLLOWED if verdict else Verdict.NOT_FOLLOWED)


def _verdict(check: Check, texts: Sequence[str], arguments: dict[str, Any]) -> object:
    """Whether any text follows, or the first value that is not a bool: a forgotten `return` gives
    None, and "no" would count as followed.
    """
    for text in texts:
        verdict = check.run(text, **arguments)
        if verdict is not False:
            return verdict
    return False


def _variants(response: str) -> list[str]:
    """The response, and without its first line, its last or both; each with and without stars.

    IFEval's eight loose variants. One that becomes blank is not among them.
    """
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    kept = [response, *(text for text in cut if text)]
    return list(dict.fromkeys([*kept, *(text.replace("*", "") for text in kept)]))


def _missing(check: Check) -> str:
    """What the check cannot run without and does not find, or the empty string."""
    for module in check.requires:
        if importlib.util.find_spec(module) is None:
            return f"needs the package {module}"
    return next(filter(None, map(nltk_tools.missing_data, check.data)), "")


def _arguments(check: Check, criterion: Criterion) -> dict[str, Any]:
    """Validated keyword arguments; None means absent (tables carry every key in every row)."""
    given = {key: value for key, value in criterion.params.items() if value is not None}
    model = check.params.model_validate(given)
    return {name: getattr(model, name) for name in check.params.model_fields}


def _left_out(criterion: Criterion, reason: str) -> CriterionResult:
    return CriterionResult(criterion.id, Verdict.UNVERIFIABLE, reason, for_every_response=True)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"])) or "params"
    # A missing key has no value of its own: pydantic gives all parameters as its input.
    shown = "" if problem["type"] == "missing" else f", not {problem['input']!r:.60}"
    return f"{where}: {problem['msg']}{shown}"
