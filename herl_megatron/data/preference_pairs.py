"""Preference pairs: two answers to one prompt, of which one is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from herl_megatron.data.canonical_rows import pair_from_row
from herl_megatron.data.prompt_source import UniqueIds, parsed_rows
from herl_megatron.types import Message


@dataclass(frozen=True)
class PreferencePair:
    """One row. `messages` is the prompt, `where` is `file:line`."""

    where: str
    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str


def load_pairs(path: str) -> list[PreferencePair]:
    """Read rows of `id`, `messages`, `chosen`, `rejected`, and nothing else, from JSONL or Parquet.

    Raises ValueError naming file and line for a malformed row, an id used twice, a prompt that
    ends with the assistant, or two equal answers.
    """
    ids = UniqueIds(path)
    pairs = []
    for line, (row_id, messages, chosen, rejected) in parsed_rows(path, pair_from_row):
        ids.add(row_id, line)
        pairs.append(PreferencePair(f"{path}:{line}", row_id, messages, chosen, rejected))
    return pairs


def pair_from_group(
    record: Mapping[str, Any], *, margin: float, revisions: bool
) -> tuple[str, str] | str:
    """The best and the worst response of a logged group, or why it makes no pair.

    record: a line of a rollout file (`observability.rollout_log`). The best has the highest reward
    and the worst the lowest, the earlier one among equals; they must be `margin` apart. With
    `revisions` a revision can be the best, never the worst: it was written in another context.
    Left out: responses without a score, and those cut by the length limit, which do not end.
    """
    drafts = _usable(record["rollouts"])
    candidates = drafts + (_usable(record.get("revisions", ())) if revisions else [])
    if not drafts or len(candidates) < 2:
        return "fewer than two scored responses that end"
    best = max(candidates, key=lambda response: response["reward"])
    worst = min(drafts, key=lambda response: response["reward"])
    if best["reward"] - worst["reward"] < margin:
        return "rewards too close"
    if best["text"] == worst["text"] or not (best["text"].strip() and worst["text"].strip()):
        return "empty or equal texts"
    return best["text"], worst["text"]


def _usable(responses: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [r for r in responses if r["reward"] is not None and r.get("finish_reason") == "stop"]
