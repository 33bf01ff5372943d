"""What a configuration is used for: the commands that run one, and which parts each needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

Purpose = Literal["train", "sft", "dpo", "eval", "improve"]
TRAINS: frozenset[Purpose] = frozenset({"train", "sft", "dpo"})
"""Commands that start the trainer."""
TUNES: frozenset[Purpose] = frozenset({"sft", "dpo"})
"""Of them, those that fit rows: they start engines where they are asked for held-out numbers
alone (`config.loop_keys.samples`)."""
SAMPLES: frozenset[Purpose] = frozenset({"train", "eval", "improve"})
"""Commands that always start engines and score."""
RESUMES: frozenset[Purpose] = TRAINS | {"improve"}
"""Commands that can go on where an earlier start was stopped."""

_TRAINER = {"run", "model", "data", "optimizer", "megatron", "checkpoint", "cluster", "tracking"}
_SAMPLER = {"run", "model", "data", "rollout", "eval", "scoring", "judge", "cluster", "tracking"}
SECTIONS: Mapping[Purpose, frozenset[str]] = {
    "train": frozenset(
        {"hindsight", "algorithm", "train", "weight_sync", "parity"} | _TRAINER | _SAMPLER
    ),
    "sft": frozenset({"sft", "weight_sync", "parity"} | _TRAINER | _SAMPLER),
    "dpo": frozenset({"dpo", "weight_sync", "parity"} | _TRAINER | _SAMPLER),
    "eval": frozenset(_SAMPLER),
    "improve": frozenset({"improve", "hindsight"} | _SAMPLER),
}
"""Sections that decide anything about a command's results."""
_OF_TRAINING_ROLLOUTS = (
    r"rollout\.(group_size|mode|oversample|max_staleness|temperature|top_p|top_k)"
    r"|scoring\.group_reward.*"
)
_TUNING_UNREAD = re.compile(rf"data\.train|{_OF_TRAINING_ROLLOUTS}").fullmatch
_UNREAD: Mapping[Purpose, Callable[[str], re.Match[str] | None]] = {
    "sft": _TUNING_UNREAD,
    "dpo": _TUNING_UNREAD,
    "eval": re.compile(rf"data\.(train|shuffle)|{_OF_TRAINING_ROLLOUTS}").fullmatch,
    "improve": re.compile(
        rf"data\.(train|shuffle|max_prompt_tokens)|{_OF_TRAINING_ROLLOUTS}"
        r"|hindsight\.(?!prompt_style$|prompt_file$|chat_template$|reference_compat$).*"
    ).fullmatch,
}
"""Of the sections that a command reads, the keys that it has no use for."""
_OF_HELD_OUT = re.compile(
    r"data\.(eval|max_prompt_tokens|max_experience_tokens)|(rollout|eval|scoring|judge)\..*"
).fullmatch


def uses(purpose: Purpose, path: str) -> bool:
    """As `reads`, or the key decides what the command takes: a longer prompt is refused."""
    asks = purpose in SAMPLES and path == "data.max_prompt_tokens"
    return asks or reads(purpose, path)


def reads(purpose: Purpose, path: str) -> bool:
    """Whether the key decides anything about the results of `herl PURPOSE`."""
    unread = _UNREAD.get(purpose)
    return path.partition(".")[0] in SECTIONS[purpose] and not (unread and unread(path))


def only_evaluates(purpose: Purpose, path: str) -> bool:
    """Whether the key decides nothing but held-out numbers for `herl PURPOSE`, whatever it decides
    for others: SFT and DPO sample nothing that they learn from."""
    return purpose in TUNES and bool(_OF_HELD_OUT(path))
