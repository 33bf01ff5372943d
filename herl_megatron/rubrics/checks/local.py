"""One check in this process: its parameters, its description, one run of it.

Those that come with the package run here. A user's own run here as well, but in a process of their
own (`isolated`), where this file is what runs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from herl_megatron.rubrics.checks.libraries import library_problem
from herl_megatron.rubrics.checks.time_limit import CheckTimeout, run_limited
from herl_megatron.rubrics.credit import measured_result
from herl_megatron.types import Criterion, CriterionResult, Verdict

Mode = Literal["strict", "loose"]
"""What is judged: the response as it is, or the best of its variants (`_variants`)."""
_SHOWN_CHARACTERS = 300
_LONGEST_REASON = 1000


@dataclass(frozen=True)
class Check:
    """A check whose function is in this process.

    `description` is a template over the parameters, an instruction to the writer; lists are
    joined by commas. `requires` names packages and `data` NLTK resources without which the check
    cannot run. A blank response follows nothing unless `judges_blank`. `unreadable` takes the
    valid parameters and says why their content cannot be judged, or returns the empty string;
    `pointless` says why every response, or none, would follow. One that `measures` returns a number
    in [0, 1] (`rubrics.credit`).
    """

    name: str
    run: Callable[..., float]
    description: str
    params: type[BaseModel]
    requires: tuple[str, ...]
    data: tuple[str, ...]
    judges_blank: bool
    unreadable: Callable[..., str] | None
    pointless: Callable[..., str] | None = None
    measures: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return tuple(self.params.model_fields)


def measures(run: Callable[..., float]) -> bool:
    """Whether the function says that it returns a number: `-> float`, or a union with float.

    It must say so: the number that a check returns by mistake (a count, where it should compare)
    would be a reward. Called after `params_model`, which refuses types that cannot be read.
    """
    returned = get_type_hints(run).get("return")
    kinds = (returned, *get_args(returned))
    return any(isinstance(kind, type) and issubclass(kind, float) for kind in kinds)


def params_model(run: Callable[..., float]) -> type[BaseModel]:
    """A pydantic model of the parameters of `run` after the response; further keys are refused.

    Raises ValueError for a function that cannot be a check: no response, a coroutine, a parameter
    without a type, which could not be validated.
    """
    name = run.__name__
    if inspect.iscoroutinefunction(run) or inspect.isgeneratorfunction(run):
        raise ValueError(
            f"the check {name!r} is no plain function; it must return True or False, or a number"
        )
    try:
        hints = get_type_hints(run, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:  # of a quoted type
        raise ValueError(
            f"the check {name!r} has a type that cannot be read ({error}); import or define it"
        ) from error
    parameters = list(inspect.signature(run).parameters.values())[1:]
    if not inspect.signature(run).parameters:
        raise ValueError(f"the check {name!r} takes no response; that is its first argument")
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    untyped = [p.name for p in parameters if p.name not in hints or p.kind in starred]
    if untyped:
        raise ValueError(
            f"the check {name!r} has parameters without a type: {', '.join(untyped)};"
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


def template_problem(description: str, parameters: Sequence[str]) -> str:
    """Why a description cannot be filled from the parameters, or the empty string."""
    try:
        named = [field for _, field, _, _ in Formatter().parse(description) if field is not None]
    except ValueError as error:
        return f"is no template ({error}); write a brace of its own as {{{{ or }}}}"
    for field in named:
        if field.partition(".")[0].partition("[")[0] not in parameters:
            has = ", ".join(parameters) or "none"
            return f"names {{{field}}}, which is no parameter of the check (it has: {has})"
    return ""


def parameter_problem(check: Check, criterion: Criterion) -> str:
    """Why the parameters do not fit, or the empty string."""
    try:
        return _said(check.pointless, _arguments(check, criterion))
    except ValidationError as error:
        return _first_problem(error)


def unreadable(check: Check, criterion: Criterion) -> str:
    """Why the content of parameters that fit says nothing, or the empty string."""
    return _said(check.unreadable, _arguments(check, criterion))


def describe(check: Check, criterion: Criterion) -> str:
    """The requirement as an instruction, from the check and its parameters."""
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
    check: Check, criterion: Criterion, response: str, *, mode: Mode, timeout_s: float | None
) -> CriterionResult:
    """The verdict of `check`; see `registry.run_check`. Raises nothing that the check raises."""
    try:
        arguments = _arguments(check, criterion)
        problem = _said(check.pointless, arguments) or _said(check.unreadable, arguments)
    except ValidationError as error:
        return left_out(criterion, f"parameters of {check.name}: {_first_problem(error)}")
    except Exception as error:  # Process border: a validator or `unreadable` may raise anything.
        return failed(criterion, f"{check.name}: its parameters raised {error_text(error)}")
    problem = problem or next(filter(None, map(library_problem, needs(check))), "")
    if problem:
        return left_out(criterion, f"{check.name}: {problem}")
    texts = [response] if mode == "strict" else _variants(response)
    if not check.judges_blank:
        texts = [text for text in texts if text.strip()]
    finished = run_limited(lambda: _verdict(check, texts, arguments), timeout_s)
    if finished is None:
        return late(criterion, timeout_s)
    if isinstance(finished.value, str):
        return failed(criterion, f"{check.name} {finished.value}")
    if check.measures:
        return measured_result(criterion.id, float(finished.value))
    verdict = Verdict.FOLLOWED if finished.value else Verdict.NOT_FOLLOWED
    return CriterionResult(criterion.id, verdict)


def needs(check: Check) -> tuple[str, ...]:
    """The packages and resources that must be ready before the check runs."""
    return (*check.requires, *check.data)


def left_out(criterion: Criterion, reason: str) -> CriterionResult:
    """Unverifiable for every response."""
    said = plain(reason[:_LONGEST_REASON])
    return CriterionResult(criterion.id, Verdict.UNVERIFIABLE, said, for_every_response=True)


def failed(criterion: Criterion, reason: str) -> CriterionResult:
    """Unverifiable for this response."""
    return CriterionResult(criterion.id, Verdict.UNVERIFIABLE, plain(reason[:_LONGEST_REASON]))


def late(criterion: Criterion, timeout_s: float | None) -> CriterionResult:
    """Unverifiable for this response: the check was over its limit."""
    limit = "in time" if timeout_s is None else f"within {timeout_s:g} s"
    return failed(criterion, f"{criterion.check} gave no verdict {limit}")


def error_text(error: BaseException) -> str:
    """Type and text of an exception, short, whatever its `__str__` does."""
    try:
        said = plain(str(error)[:_SHOWN_CHARACTERS])
    except CheckTimeout:
        raise
    except BaseException:  # Its own code: it may raise anything.
        said = "(its text cannot be shown)"
    return f"{type(error).__name__}: {said}"


def plain(text: str) -> str:
    """The text as UTF-8 can hold it: a lone surrogate would stop whoever writes it down."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _verdict(check: Check, texts: Sequence[str], arguments: dict[str, Any]) -> float | str:
    """Whether any text follows (of a check that measures: the most of any), or why there is no
    verdict.

    Only a bool is one: a forgotten `return` gives None, and "no" would count as followed.
    """
    most = 0.0
    try:
        for text in texts:
            verdict: object = check.run(text, **arguments)
            if verdict is True:
                return True
            value = _measured(verdict) if check.measures else None
            if value is not None:
                most = max(most, value)
            elif verdict is not False:
                return _no_verdict(check, verdict)
    except CheckTimeout:
        raise
    except BaseException as error:  # Process border: a check may raise anything, exit, interrupt.
        return f"raised {error_text(error)}"
    return most


def _measured(verdict: object) -> float | None:
    """A number in [0, 1] as such; None for anything else, NaN and bools included."""
    if isinstance(verdict, bool) or not isinstance(verdict, int | float):
        return None
    value = float(verdict)
    return value if 0 <= value <= 1 else None


def _no_verdict(check: Check, verdict: object) -> str:
    shown = f"returned {shown_value(verdict)}; a check"
    if check.measures:
        return f"{shown} that returns a number must return one from 0 to 1, or True or False"
    hint = " (or a number in [0, 1], if it says `-> float`)" if isinstance(verdict, float) else ""
    return f"{shown} must return True or False{hint}"


def shown_value(value: object) -> str:
    """Value and type for a message, short, whatever its `__repr__` does."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    try:
        text = f"{value!r:.40}"
    except CheckTimeout:
        raise
    except BaseException:  # Its own code: it may raise anything.
        text = "something that cannot be shown"
    return f"{text} ({name})"


def _said(look: Callable[..., str] | None, arguments: dict[str, Any]) -> str:
    """What `unreadable` or `pointless` says of the parameters."""
    if look is None:
        return ""
    said: object = look(**arguments)
    if said is None or isinstance(said, str):
        return plain(said or "")
    raise TypeError(f"{look.__name__} must return a text, not {shown_value(said)}")


def _variants(response: str) -> list[str]:
    """The response, and without its first line, its last or both; each with and without stars.

    IFEval's eight loose variants. One that becomes blank is not among them.
    """
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    kept = [response, *(text for text in cut if text)]
    return list(dict.fromkeys([*kept, *(text.replace("*", "") for text in kept)]))


def _arguments(check: Check, criterion: Criterion) -> dict[str, Any]:
    """Validated keyword arguments; None means absent (tables carry every key in every row)."""
    given = {key: value for key, value in criterion.params.items() if value is not None}
    model = check.params.model_validate(given)
    return {name: getattr(model, name) for name in check.params.model_fields}


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"])) or "params"
    # A missing key has no value of its own: pydantic gives all parameters as its input.
    shown = "" if problem["type"] == "missing" else f", not {problem['input']!r:.60}"
    return plain(f"{where}: {problem['msg']}{shown}")
