"""In the child: a user's reward function over a whole group, and what may come out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from json import dumps  # what a module does to `json` does not reach it

from herl_megatron.config.hooks import Hook, check_call, check_options, error_place, load_hook
from herl_megatron.rubrics.checks import local
from herl_megatron.rubrics.checks.isolated.wire import LoadReward, Reward, Said
from herl_megatron.rubrics.checks.time_limit import CheckTimeout, run_limited
from herl_megatron.types import Unscored

REWARD_KEY = "scoring.group_reward"
_MOST = 1e38
"""The largest reward that fp32 arithmetic holds."""


def load_reward(request: LoadReward) -> Hook | str:
    """The function, or why it cannot be had."""
    places: list[str] = []

    def attempt() -> Hook | str:
        try:
            hook = load_hook(REWARD_KEY, request.name, folder=request.folder)
            check_call(hook, ["group"])
            check_options(hook, REWARD_KEY, {}, after=1)  # it can be given no more
        except CheckTimeout as late:
            places.append(error_place(late, request.name.partition(":")[0]))
            raise
        except ValueError as error:
            return str(error)
        except BaseException as error:  # Process border: a module may raise anything.
            return f"{REWARD_KEY}: importing {request.name} raised {local.error_text(error)}"
        return hook

    finished = run_limited(attempt, request.limits.import_s)
    if finished is not None:
        return finished.value
    place = f" (it was{places[0]})" if places and places[0] else ""
    return (
        f"{REWARD_KEY}: importing {request.name} took longer than {request.limits.import_s:g} s"
        f"{place}"
    )


def rewards_of(hook: Hook, request: Reward) -> tuple[Said, str]:
    """What the function makes of a group, as JSON (`Said.REWARDS`), or why it makes nothing of it,
    as what it did. Raises nothing that the function raises."""

    def attempt() -> tuple[Said, str]:
        try:
            return _packed(hook.call(request.group), len(request.group.texts))
        except CheckTimeout:
            raise
        except BaseException as error:  # Process border: it may raise anything, exit, interrupt.
            place = error_place(error, hook.module)
            return Said.PROBLEM, f"raised {local.error_text(error)}{place}"

    finished = run_limited(attempt, request.timeout_s)
    if finished is None:
        return Said.PROBLEM, late(request.timeout_s)
    return finished.value


def late(timeout_s: float) -> str:
    """What a function did that was over its limit."""
    return f"gave nothing within {timeout_s:g} s (scoring.group_reward_timeout_s)"


def _packed(returned: object, responses: int) -> tuple[Said, str]:
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence):
        return Said.PROBLEM, f"returned {local.shown_value(returned)}; it must return a list"
    if len(returned) != responses:
        return Said.PROBLEM, f"returned {len(returned)} rewards for {responses} responses"
    return Said.REWARDS, dumps([_reward(one) for one in returned], allow_nan=False)


def _reward(one: object) -> float | list[str]:
    """A number, or in a list why there is none."""
    if isinstance(one, Unscored):
        return [f"said: {local.plain(str(one.reason))}"]
    if isinstance(one, int | float) and not isinstance(one, bool) and abs(one) <= _MOST:
        return float(one)
    why = "" if one is None else ", which is no finite number"
    return [f"gave {local.shown_value(one)}{why}"]


def is_reward(value: object) -> bool:
    """Whether a number that came over the wire is a reward."""
    return isinstance(value, float) and math.isfinite(value) and abs(value) <= _MOST
