"""The own answers of a policy to each prompt, and which of them is worth learning from.

A record is a line of a rollout file (`observability.rollout_log`): `prompt_id`, `messages`,
`rollouts` and `revisions` with `text`, `reward` (None: unscored) and `finish_reason`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]


@dataclass
class Asked:
    """A prompt and all answers to it, in the order of files and lines. where: of the first."""

    where: str
    record: Record
    answers: list[Record] = field(default_factory=list)
    repeats: int = 0


def by_prompt(records: Iterable[tuple[str, Record]], *, revisions: bool) -> list[Asked]:
    """The records of (where, record) with the same messages in one, in the order of their first.

    revisions: whether they are answers too.
    """
    found: dict[str, Asked] = {}
    for where, record in records:
        key = prompt_text(record["messages"])
        if key in found:
            found[key].repeats += 1
        asked = found.setdefault(key, Asked(where, record))
        asked.answers += record["rollouts"]
        asked.answers += record.get("revisions", ()) if revisions else ()
    return list(found.values())


def prompt_text(messages: Iterable[Mapping[str, Any]]) -> str:
    """Equal for exactly equal conversations."""
    return json.dumps([[m["role"], m["content"]] for m in messages], allow_nan=False)


def that_end(answers: Iterable[Record]) -> Iterator[Record]:
    """Those that the length limit did not cut, and that say something."""
    return (a for a in answers if a.get("finish_reason") == "stop" and a["text"].strip())


def best_answer(asked: Asked, *, min_reward: float | None) -> Record | str:
    """The answer of the highest reward that ends, the earliest among equals, or why there is none.

    min_reward: the least reward of an answer that is worth learning from.
    """
    if all(answer["reward"] is None for answer in asked.answers):
        return "no answer is scored"
    scored = [a for a in that_end(asked.answers) if a["reward"] is not None]
    if not scored:
        return "every scored answer is cut or empty"
    best = max(scored, key=lambda answer: answer["reward"])
    if min_reward is not None and best["reward"] < min_reward:
        return "below the reward"
    return best


def worst_answer(asked: Asked) -> Record | str:
    """The answer of the lowest reward that ends; without any reward the first that ends; or why
    there is none."""
    ends = list(that_end(asked.answers))
    if not ends:
        return "every answer is cut or empty"
    scored = [a for a in ends if a["reward"] is not None]
    return min(scored, key=lambda answer: answer["reward"]) if scored else ends[0]
