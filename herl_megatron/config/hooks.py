"""A user's own code, named in the configuration as `module:function`.

`load_hook` imports it in this process: from what is installed, from PYTHONPATH, or from the folder
that herl was started in. Whoever calls it says what it will be given (`check_call`); what a user
may choose besides are options, plain values from the configuration that are checked against the
types in its signature (`check_options`). All of this happens before anything expensive starts.

A process on another machine loads the same name again, with the same `folder`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

T = TypeVar("T")
OptionValue = bool | int | float | str
"""What an option may be: what a line of a configuration can say."""


@dataclass(frozen=True)
class Hook:
    """A user's function or class.

    key: the configuration key that names it, for messages.
    name: as the key has it, `module:function`.
    call: the function or class.
    file: the source file of its module, "" if there is none.
    """

    key: str
    name: str
    call: Callable[..., Any]
    file: str

    @property
    def module(self) -> str:
        """The dotted name of its module."""
        return self.name.partition(":")[0]


def is_hook(name: str) -> bool:
    """Whether a value names code of a user's own, and not something that herl has."""
    return ":" in name


def name_problem(name: str) -> str:
    """Why `name` is no `module:function`, as the end of a sentence, or ""; imports nothing."""
    module, colon, function = name.partition(":")
    if colon and function.isidentifier() and all(p.isidentifier() for p in module.split(".")):
        return ""
    return (
        "is not of the form module:function; write the module as after `import`, without folder"
        " or .py, a colon, and the name of a function in it"
    )


def load_hook(key: str, name: str, *, folder: str | None = None) -> Hook:
    """Import the code that `key` names.

    folder: where its module may lie too, by default the working directory, which is not on the
        path of a console script.

    Raises:
        ValueError: no such name, module or function, or whatever the module raised while it was
            imported; with the place.
    """
    if problem := name_problem(name):
        raise ValueError(f"{key}: {name!r} {problem}")
    module, _, function = name.partition(":")
    folder = folder or os.getcwd()
    if folder not in sys.path:
        # Last: no file that happens to lie there may stand in for an installed package.
        sys.path.append(folder)
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # A user's module may raise anything, and exit.
        raise ValueError(f"{key}: {_import_problem(module, folder, error)}") from error
    found = vars(loaded).get(function)
    file = vars(loaded).get("__file__") or ""
    if found is None:
        near = get_close_matches(function, vars(loaded), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "define it there, or correct the name"
        raise ValueError(f"{key}: {module!r} ({file}) has no {function!r}; {hint}")
    if not callable(found):
        raise ValueError(
            f"{key}: {name} is a {type(found).__name__}, which cannot be called; name a function"
        )
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        raise ValueError(
            f"{key}: {name} is an object of {type(found).__name__}; name a function or a class, for"
            f" example `def {function}_(...): return {function}(...)`"
        )
    return Hook(key, name, found, file)


def check_call(hook: Hook, arguments: Sequence[str], *, coroutine: bool = False) -> None:
    """Whether it can be called with `arguments` by position; whatever else it takes is an option.

    coroutine: whether it must be an `async def`, or a plain function or class.

    Raises:
        ValueError: it takes fewer, or it is of the wrong kind, or what it takes cannot be known.
    """
    given = ", ".join(arguments)
    if coroutine != inspect.iscoroutinefunction(hook.call):
        raise ValueError(
            f"{hook.key}: {hook.name} is {'not ' if coroutine else ''}an async function; write"
            f" `{'async ' if coroutine else ''}def {hook.name.partition(':')[2]}({given})`"
        )
    if inspect.isgeneratorfunction(hook.call) or inspect.isasyncgenfunction(hook.call):
        raise ValueError(f"{hook.key}: {hook.name} is a generator; return the result, not yield it")
    by_position = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    taken = [p for p in _parameters(hook) if p.kind in by_position]
    if len(taken) < len(arguments):
        raise ValueError(
            f"{hook.key}: {hook.name} is called with ({given}) but takes"
            f" ({', '.join(p.name for p in taken)}) by position; take {len(arguments)} there"
        )


def check_options(
    hook: Hook, key: str, options: Mapping[str, OptionValue], *, after: int
) -> dict[str, OptionValue]:
    """The options that it is called with, by keyword: `options`, each of its parameter's type.

    A parameter without a default must be given; a whole number is good for a float.

    Args:
        key: the configuration key of `options`, for messages.
        after: how many arguments it is given by position (`check_call`); the others are options.

    Raises:
        ValueError: all that is unknown, missing or of another type.
    """
    parameters = _parameters(hook)[after:]
    types = _types(hook, [p.name for p in parameters])
    problems = [
        f"{key} has no use for {name!r}: {hook.name} takes {', '.join(types) or 'no options'};"
        f" remove it or correct the name"
        for name in options
        if name not in types
    ]
    problems += [
        f"{key} has no {p.name!r}, which {hook.name} needs; add it, or give it a default there"
        for p in parameters
        if p.name not in options and p.default is inspect.Parameter.empty
    ]
    checked: dict[str, OptionValue] = {}
    for name in types.keys() & options.keys():
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(options[name], strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            problems.append(f"{key}.{name} is {options[name]!r}, but for {hook.name}: {said}")
    if problems:
        raise ValueError("; ".join(sorted(problems)))
    return checked


def tried(hook: Hook, doing: str, call: Callable[[], T]) -> T:
    """What `call` gives, which runs the user's code; `doing`: what failed then, after its name.

    Raises:
        ValueError: it raised or exited: key, name, place and what it said. What begins with key
            and name already is raised as it is.
    """
    place = f"{hook.key}: {hook.name}"
    try:
        return call()
    except (Exception, SystemExit) as error:  # A user's code may raise anything, and exit.
        if str(error).startswith(place):
            raise
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}{doing}{error_place(error, hook.module)}: {said}") from error


def error_place(error: BaseException, module: str) -> str:
    """` at FILE:LINE` of the module in the way of an exception, or "" where it was not in it."""
    if isinstance(error, SyntaxError) and os.path.exists(error.filename or ""):
        return f" at {error.filename}:{error.lineno}"
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == module
    ]
    return f" at {frames[-1][0]}:{frames[-1][1]}" if frames else ""


def _import_problem(module: str, folder: str, error: BaseException) -> str:
    place = error_place(error, module)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"cannot import {module!r} ({error}{place}); install it, put its folder on PYTHONPATH"
            f" or start where it lies (looked in {folder} too)"
        )
    return f"importing {module!r} failed{place}: {type(error).__name__}: {error}"


def _parameters(hook: Hook) -> list[inspect.Parameter]:
    """In order; refuses those that take whatever comes, which no mistake could be found in."""
    try:
        parameters = list(inspect.signature(hook.call).parameters.values())
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{hook.key}: the arguments of {hook.name} cannot be known ({error}); name a function"
            " written in Python"
        ) from error
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise ValueError(
                f"{hook.key}: {hook.name} takes {parameter}; name each argument, so that a wrong"
                " option can be found"
            )
    return parameters


def _types(hook: Hook, names: Sequence[str]) -> dict[str, Any]:
    """The types of its options."""
    call = hook.call.__init__ if inspect.isclass(hook.call) else hook.call
    try:
        hints = get_type_hints(call, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:  # of a quoted type
        raise ValueError(
            f"{hook.key}: {hook.name} has a type that cannot be read ({error}); import or define it"
        ) from error
    if untyped := [name for name in names if name not in hints]:
        raise ValueError(
            f"{hook.key}: {hook.name} has options without a type: {', '.join(untyped)}; annotate"
            f" them, e.g. `{untyped[0]}: float`"
        )
    for name in names:
        try:
            TypeAdapter(hints[name])
        except PydanticUserError as error:
            raise ValueError(
                f"{hook.key}: no value of a configuration is a {hints[name]}, as {name!r} of"
                f" {hook.name} is; make it a number, a bool, a text or a Literal of them"
            ) from error
    return {name: hints[name] for name in names}
