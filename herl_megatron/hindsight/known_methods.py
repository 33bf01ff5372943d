"""The hindsight method of a configuration: the one place that knows their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from herl_megatron.config.hooks import (
    Hook,
    check_call,
    check_options,
    error_place,
    is_hook,
    load_hook,
)
from herl_megatron.config.schema import HindsightConfig, RolloutConfig
from herl_megatron.hindsight.herl import HeRL
from herl_megatron.hindsight.hir import HiR
from herl_megatron.hindsight.method import HindsightMethod
from herl_megatron.types import Prompt

METHODS: Mapping[str, type[HindsightMethod]] = {"revise": HeRL, "replay": HiR}
SHARED_KEYS = frozenset(
    {"enabled", "method", "method_options", "threshold", "behavior", "gamma", "off_policy_loss"}
)
"""Of the section `hindsight`: what the loop and the loss read, whatever the method."""
_KEY, _OPTIONS = "hindsight.method", "hindsight.method_options"
_CALLED = {
    "propose": 2, "join": 2, "join_step": 2, "problems": 1, "check_prompt": 1, "check_prompts": 1
}  # fmt: skip
"""Methods of a `HindsightMethod`, and how many arguments each is given beside self."""
T = TypeVar("T")


def open_method(config: HindsightConfig) -> HindsightMethod | None:
    """The method that `hindsight.method` names; None without hindsight.

    Raises:
        ValueError: no such method; a class from outside that cannot be imported, is no method or
            does not take its options.
    """
    if not config.enabled:
        return None
    if not is_hook(config.method):
        return _built_in(config)
    hook = load_hook(_KEY, config.method)
    if not (inspect.isclass(hook.call) and issubclass(hook.call, HindsightMethod)):
        raise ValueError(
            f"{_KEY}: {hook.name} is no class that derives from"
            " herl_megatron.hindsight.method.HindsightMethod; write it so"
        )
    check_call(hook, ["config"])
    options = check_options(hook, _OPTIONS, config.method_options, after=1)
    method: HindsightMethod = _asked(hook, "", lambda: hook.call(config, **options))
    _check_written(hook, method)
    return method


def method_problems(config: HindsightConfig, rollout: RolloutConfig) -> list[str]:
    """What the method says is wrong between its keys; empty without hindsight.

    Raises:
        ValueError: as `open_method`, or its own `problems` failed.
    """
    method = open_method(config)
    if method is None:
        return []
    return _guarded(config, "problems", lambda: list(method.problems(rollout)))


def check_rows(config: HindsightConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse rows of `data.train` that the method can do nothing with.

    Raises:
        ValueError: it says so, or its own `check_prompts` failed.
    """
    if (method := open_method(config)) is not None:
        _guarded(config, "check_prompts", lambda: method.check_prompts(prompts))


def _guarded(config: HindsightConfig, name: str, call: Callable[[], T]) -> T:
    if not is_hook(config.method):
        return call()
    return _asked(load_hook(_KEY, config.method), f".{name}", call)


def _asked(hook: Hook, what: str, call: Callable[[], T]) -> T:
    """Call the user's code; what it raises is said with key, name and place."""
    try:
        return call()
    except ValueError as error:
        if str(error).startswith(_KEY) or what == ".check_prompts":
            raise  # its own words about a row
        raise ValueError(f"{_KEY}: {hook.name}{what} refused: {error}") from error
    except (Exception, SystemExit) as error:  # A user's class may raise anything, and exit.
        raise ValueError(
            f"{_KEY}: {hook.name}{what} failed{error_place(error, hook.module)}:"
            f" {type(error).__name__}: {error}"
        ) from error


def _check_written(hook: Hook, method: HindsightMethod) -> None:
    """What a run would only find once its engines have drawn a group."""
    place = f"{_KEY}: {hook.name}"
    if type(method).propose is HindsightMethod.propose:
        raise ValueError(f"{place} has no `propose`; write `def propose(self, group, context)`")
    if "config" not in vars(method):
        raise ValueError(f"{place}.__init__ does not call super().__init__(config); do so first")
    if not isinstance(method.keys, frozenset | set):
        raise ValueError(
            f"{place}.keys is a {type(method.keys).__name__}; make it a frozenset of keys"
        )
    for name, count in _CALLED.items():
        written = getattr(method, name)
        try:
            inspect.signature(written).bind(*[None] * count)
        except TypeError as error:
            raise ValueError(
                f"{place}.{name} cannot be called with {count} arguments beside self ({error});"
                " take those that HindsightMethod has"
            ) from error
        if inspect.iscoroutinefunction(written) or inspect.isgeneratorfunction(written):
            if name != "problems":
                raise ValueError(f"{place}.{name} must be a plain function that returns a value")


def _built_in(config: HindsightConfig) -> HindsightMethod:
    if config.method not in METHODS:
        raise ValueError(
            f"{_KEY}: {config.method!r} is not one of {', '.join(METHODS)}; a method of your own is"
            " named module:class"
        )
    if config.method_options:
        raise ValueError(
            f"{_OPTIONS} is for a method of your own; {config.method!r} has its keys in"
            " `hindsight`: remove it"
        )
    return METHODS[config.method](config)


def ignored_keys(config: HindsightConfig) -> dict[str, object]:
    """Keys with another value than their default that the method does not read, with the values.

    Raises:
        ValueError: as `open_method`.
    """
    method = open_method(config)
    if method is None:
        return {}
    values, defaults = config.model_dump(), HindsightConfig().model_dump()
    read = SHARED_KEYS | method.keys
    return {key: x for key, x in values.items() if key not in read and x != defaults[key]}
