"""What a configuration is used for: the commands that run one, and which parts each needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

Purpose = Literal["train", "sft", "dpo", "eval", "improve"]
TRAINS: frozenset[Purpose] = frozenset({"train", "sft", "dpo"})
"""Commands that start the trainer."""
SAMPLES: frozenset[Purpose] = frozenset({"train", "eval", "improve"})
"""Commands that start engines and score."""
RESUMES: frozenset[Purpose] = frozenset({"train", "improve"})
"""Commands that can go on where an earlier start was stopped."""

_TRAINER = {"run", "model", "data", "optimizer", "megatron", "cluster", "tracking"}
_SAMPLER = {"run", "model", "data", "rollout", "eval", "scoring", "judge", "cluster", "tracking"}
SECTIONS: Mapping[Purpose, frozenset[str]] = {
    "train": frozenset(
        {"hindsight", "algorithm", "train", "checkpoint", "weight_sync", "parity"}
        | _TRAINER
        | _SAMPLER
    ),
    "sft": frozenset({"sft"} | _TRAINER),
    "dpo": frozenset({"dpo"} | _TRAINER),
    "eval": frozenset(_SAMPLER),
    "improve": frozenset({"improve", "hindsight"} | _SAMPLER),
}
"""Sections that decide anything about a command's results."""
_ONLY_TRAINS = re.compile(
    r"data\.(?!(?:shuffle|chat_template_args|template_date|think_tags)$).*"
).fullmatch
_UNREAD: Mapping[Purpose, Callable[[str], re.Match[str] | None]] = {
    "sft": _ONLY_TRAINS,
    "dpo": _ONLY_TRAINS,
    "eval": re.compile(
        r"data\.(train|shuffle)|rollout\.(group_size|mode|oversample|max_staleness|temperature"
        r"|top_p|top_k)|scoring\.group_reward.*"
    ).fullmatch,
    "improve": re.compile(
        r"data\.(train|shuffle|max_prompt_tokens)|rollout\.(group_size|mode|oversample|max_staleness"
        r"|temperature|top_p|top_k)|scoring\.group_reward.*"
        r"|hindsight\.(?!prompt_style$|prompt_file$|chat_template$|reference_compat$).*"
    ).fullmatch,
}
"""Of the sections that a command reads, the keys that it has no use for."""


def uses(purpose: Purpose, path: str) -> bool:
    """As `reads`, or the key decides what the command takes: a longer prompt is refused."""
    asks = purpose in SAMPLES and path == "data.max_prompt_tokens"
    return asks or reads(purpose, path)


def reads(purpose: Purpose, path: str) -> bool:
    """Whether the key decides anything about the results of `herl PURPOSE`."""
    unread = _UNREAD.get(purpose)
    return path.partition(".")[0] in SECTIONS[purpose] and not (unread and unread(path))
