"""An advantage of a user's own, `algorithm.advantage: module:function`
(docs/extending_algorithms.md).

The function takes `GroupRewards` and its options and returns one number per row. Before anything
expensive starts it is tried on made-up groups (`check_advantage`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from numbers import Real

from herl_megatron.config.hooks import (
    Hook,
    check_call,
    check_options,
    is_hook,
    load_hook,
    tried,
)
from herl_megatron.config.schema import AlgorithmConfig


@dataclass(frozen=True)
class GroupRewards:
    """The rows of one group, in order.

    rewards: what each row trains on, bonus included; None for a row without a valid reward, which
        is masked from the loss, so that its advantage counts for nothing.
    off_policy: true for revisions and replays.
    """

    rewards: tuple[float | None, ...]
    off_policy: tuple[bool, ...]

    @property
    def valid(self) -> tuple[bool, ...]:
        """Which rows have a reward."""
        return tuple(reward is not None for reward in self.rewards)


@dataclass(frozen=True, eq=False)
class OwnAdvantage:
    """The function with its options."""

    hook: Hook
    call: Callable[[GroupRewards], object]

    def __call__(self, group: GroupRewards) -> tuple[float, ...]:
        """One advantage per row; 0 for a row without a reward.

        Raises:
            ValueError: it returned something else than a finite number per row.
        """
        found = self.call(group)
        values: list[object] = []
        if isinstance(found, Iterable) and not isinstance(found, Mapping | Set):
            values = list(found)
        numbers = [v for v in values if isinstance(v, Real)]
        if any(value is True or value is False for value in values):
            numbers = []
        if len(values) != len(group.rewards) or len(numbers) != len(values):
            raise self._wrong(group, found, "return one number for each row, 0.0 where it has none")
        advantages = tuple(
            float(number) if valid else 0.0
            for number, valid in zip(numbers, group.valid, strict=True)
        )
        if not all(math.isfinite(advantage) for advantage in advantages):
            raise self._wrong(group, found, "every advantage must be finite")
        return advantages

    def _wrong(self, group: GroupRewards, found: object, fix: str) -> ValueError:
        return ValueError(
            f"{self.hook.key}: {self.hook.name} returned {found!r} for rewards"
            f" {list(group.rewards)} (off-policy {list(group.off_policy)}); {fix}"
        )


def open_advantage(algorithm: AlgorithmConfig) -> OwnAdvantage | None:
    """The user's advantage; None where `algorithm.advantage` names ours.

    Raises:
        ValueError: it cannot be loaded or called, or options do not fit.
    """
    if not is_hook(algorithm.advantage):
        return None
    hook = load_hook("algorithm.advantage", algorithm.advantage)
    check_call(hook, ["group"])
    key = "algorithm.advantage_options"
    options = check_options(hook, key, algorithm.advantage_options, after=1)
    return OwnAdvantage(hook, partial(hook.call, **options))


def check_advantage(advantage: OwnAdvantage) -> None:
    """Try it on made-up groups, each of which has spread.

    Raises:
        ValueError: it raised, did not return a finite number per row, or returned others for the
            same group.
    """
    place = f"{advantage.hook.key}: {advantage.hook.name}"
    for group in _MADE_UP:
        doing = f" failed for rewards {list(group.rewards)}"
        first, again = (tried(advantage.hook, doing, partial(advantage, group)) for _ in range(2))
        if first != again:
            raise ValueError(
                f"{place} returned {first} and then {again} for the same group; a resumed run would"
                " not repeat: leave chance and memory out"
            )


_MADE_UP = (
    GroupRewards((0.0, 1.0), (False, False)),
    GroupRewards((0.25, None, 1.0, 0.25, 0.5), (False, False, False, False, True)),
    GroupRewards((-3.0, 7.5, None), (False, True, False)),
)
