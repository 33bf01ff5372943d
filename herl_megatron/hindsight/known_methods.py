"""The hindsight method of a configuration: the one place that knows their names."""

from __future__ import annotations

from collections.abc import Mapping

from herl_megatron.config.hooks import check_call, check_options, is_hook, load_hook
from herl_megatron.config.schema import HindsightConfig
from herl_megatron.hindsight.herl import HeRL
from herl_megatron.hindsight.hir import HiR
from herl_megatron.hindsight.method import HindsightMethod

METHODS: Mapping[str, type[HindsightMethod]] = {"revise": HeRL, "replay": HiR}
SHARED_KEYS = frozenset(
    {"enabled", "method", "method_options", "threshold", "behavior", "gamma", "off_policy_loss"}
)
"""Of the section `hindsight`: what the loop and the loss read, whatever the method."""
_KEY, _OPTIONS = "hindsight.method", "hindsight.method_options"


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
    check_call(hook, ["config"])
    options = check_options(hook, _OPTIONS, config.method_options, after=1)
    method = hook.call(config, **options)
    if not isinstance(method, HindsightMethod):
        raise ValueError(
            f"{_KEY}: {hook.name} gives a {type(method).__name__}; derive it from"
            " herl_megatron.hindsight.method.HindsightMethod"
        )
    return method


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
