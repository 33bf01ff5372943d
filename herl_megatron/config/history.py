"""What became of the configuration's keys: the one table of renamed, removed and added keys.

`HISTORY.version` stands in every `config.yaml` and checkpoint that a run writes, and may stand as
`version` at the top of a file that a user writes. Whoever renames or removes a key, or lets a new
one take over what others decided, raises it by one and adds a line here; then

- a file with the old key is refused by its new name (`config.load`);
- `herl config migrate FILE` rewrites it (`config.migrate`);
- runs and checkpoints of earlier versions are read as they were meant (`config.upgrade`).

Version 1 is what was written before files had a version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """From version `since` on, `old` is called `new`; paths are dotted.

    convert: the value under the new name from that under the old one; None leaves it as it is.
    """

    since: int
    old: str
    new: str
    convert: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Removed:
    """From version `since` on there is no key `old`; `instead` says what to do, as an order."""

    since: int
    old: str
    instead: str


@dataclass(frozen=True)
class TookOver:
    """From version `since` on, `new` decides what other keys did until then.

    where: only a configuration that gives this key a value has a use for `new`.
    sources: the keys that decided, with their defaults of that time.
    value: `new` from the values of `sources`, in their order.
    said: what the sources made up, for messages.
    """

    since: int
    new: str
    where: str
    sources: Mapping[str, Any]
    value: Callable[..., Any]
    said: str


@dataclass(frozen=True)
class NewDefault:
    """From version `since` on, `key` has another default than `old`."""

    since: int
    key: str
    old: Any


@dataclass(frozen=True)
class History:
    """All changes up to `version`."""

    version: int
    renamed: tuple[Renamed, ...] = ()
    removed: tuple[Removed, ...] = ()
    took_over: tuple[TookOver, ...] = ()
    new_defaults: tuple[NewDefault, ...] = ()


def _sum(*values: int) -> int:
    return sum(values)


_LONGEST_ROW = {"data.max_experience_tokens": 2048, "rollout.max_response_tokens": 1024}
_SAID = "data.max_experience_tokens + rollout.max_response_tokens"

HISTORY = History(
    version=2,
    # Up to version 2 no key was renamed and none removed.
    took_over=(
        TookOver(2, "sft.max_tokens", "sft.data", _LONGEST_ROW, _sum, _SAID),
        TookOver(2, "dpo.max_tokens", "dpo.data", _LONGEST_ROW, _sum, _SAID),
    ),
    # Each with the last default that it had before.
    new_defaults=(
        NewDefault(2, "rollout.max_num_seqs", 256),
        NewDefault(2, "rollout.timeout_s", 1800.0),
        NewDefault(2, "rollout.stall_timeout_s", 120.0),
        NewDefault(2, "megatron.timeout_s", 600.0),
        NewDefault(2, "weight_sync.bucket_bytes", 256 << 20),
        NewDefault(2, "parity.fp32_mean", 1e-5),
        NewDefault(2, "parity.fp32_max", 1e-3),
        NewDefault(2, "parity.bf16_mean", 0.05),
        NewDefault(2, "parity.bf16_max", 1.0),
        NewDefault(2, "parity.fp8_mean", 0.3),
        NewDefault(2, "parity.fp8_max", 2.0),
    ),
)
