"""The hindsight method of a configuration: the one place that knows their names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from herl_megatron.config.hooks import (
    Hook,
    check_call,
    check_options,
    is_hook,
    load_hook,
    tried,
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
    method: HindsightMethod = tried(hook, " failed", lambda: hook.call(config, **options))
    _check_written(hook, method)
    return method


def problems_of(
    method: HindsightMethod, config: HindsightConfig, rollout: RolloutConfig
) -> list[str]:
    """What the method of `config` says is wrong between its keys.

    Raises:
        ValueError: its own `problems` failed.
    """
    if not is_hook(config.method):
        return list(method.problems(rollout))
    hook = load_hook(_KEY, config.method)
    return tried(hook, ".problems failed", lambda: list(method.problems(rollout)))


def check_rows(config: HindsightConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse rows of `data.train` that the method can do nothing with.

    Raises:
        ValueError: it says so, or its own `check_prompts` failed.
    """
    method = open_method(config)
    if method is None:
        return
    if not is_hook(config.method):
        method.check_prompts(prompts)
        return

    def refused() -> ValueError | None:  # in the method's own words about a row
        try:
            method.check_prompts(prompts)
        except ValueError as error:
            return error
        return None

    error = tried(load_hook(_KEY, config.method), ".check_prompts failed", refused)
    if error is not None:
        raise error


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
