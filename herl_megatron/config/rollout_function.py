"""The function that `rollout.function` names, looked at before anything starts."""

from __future__ import annotations

from herl_megatron.config.hooks import Hook, OptionValue, check_call, check_options, load_hook
from herl_megatron.config.schema import RolloutConfig

_KEY, _OPTIONS = "rollout.function", "rollout.function_options"


def rollout_function(rollout: RolloutConfig) -> tuple[Hook, dict[str, OptionValue]] | None:
    """The coroutine function and the options that it is called with; None without one.

    Raises:
        ValueError: it cannot be imported, is no coroutine of one conversation, or does not take its
            options.
    """
    if rollout.function:
        hook = load_hook(_KEY, rollout.function)
        check_call(hook, ["talk"], coroutine=True)
        return hook, check_options(hook, _OPTIONS, rollout.function_options, after=1)
    if rollout.function_options:
        raise ValueError(
            f"{_OPTIONS} is for {_KEY}, which is empty; name a function or remove the options"
        )
    return None
