"""Rows for `herl score`: canonical rows that carry a response, or several, and the groups of a
run's rollout files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herl_megatron.data.canonical_rows import prompt_from_row
from herl_megatron.data.prompt_source import UniqueIds, parsed_rows
from herl_megatron.types import Prompt


@dataclass(frozen=True)
class ResponseRow:
    """A prompt and the responses to score.

    listed: they stand under `responses` (a list), not under `response`.
    digest: hash of the whole row, so that a result can be matched with what it was made from.
    """

    prompt: Prompt
    texts: tuple[str, ...]
    listed: bool
    digest: str


def load_responses(path: str) -> list[ResponseRow]:
    """Read canonical rows with `response` (a text) or `responses` (texts) from JSONL or Parquet, or
    the groups of a file of a run's `rollouts/`: the first samples of each, not its revisions.

    Raises ValueError naming file, line and what is wrong, as `load_prompts` does.
    """
    rows: list[ResponseRow] = []
    ids = UniqueIds(path)
    for line, row in parsed_rows(path, _response_row):
        ids.add(row.prompt.id, line)
        rows.append(row)
    return rows


def _response_row(row: object) -> ResponseRow:
    if not isinstance(row, Mapping):
        raise ValueError(f"row must be an object with named keys, not {row!r:.60}")
    if "prompt_id" in row and "rollouts" in row:  # a line of a run: its own scores are no part
        row = _from_group(row)
    fields = dict(row)
    one, several = fields.pop("response", None), fields.pop("responses", None)
    if (one is None) == (several is None):
        given = "both" if one is not None else "neither"
        raise ValueError(
            f"the row has {given} of 'response' and 'responses'; give 'response' (a text) or "
            "'responses' (a list of texts)"
        )
    texts = [one] if several is None else several
    if not isinstance(texts, (list, tuple)) or not texts:
        raise ValueError(f"responses must be a list of texts, not {texts!r:.60}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            where = "response" if several is None else f"responses[{index}]"
            raise ValueError(f"{where} must be a text, not {text!r:.60}")
    prompt = prompt_from_row(fields)  # half characters may be in a response alone: it is scored
    content = json.dumps(row, sort_keys=True, default=str)
    return ResponseRow(
        prompt=prompt,
        texts=tuple(texts),
        listed=several is not None,
        digest=hashlib.sha256(content.encode()).hexdigest()[:16],
    )


def _from_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row with `responses`, of a line that `observability.rollout_log` wrote."""
    if "aggregation" not in group:
        raise ValueError(
            f"the group of {group['prompt_id']!r} does not say how it is scored: an earlier version"
            " of herl wrote it; put its texts into canonical rows as 'responses', or evaluate again"
        )
    rollouts = group["rollouts"]
    if not isinstance(rollouts, list) or not all(isinstance(one, Mapping) for one in rollouts):
        raise ValueError(f"rollouts must be a list of objects, not {rollouts!r:.60}")
    return {
        "id": group["prompt_id"],
        "messages": group.get("messages"),
        "rubric": {"aggregation": group["aggregation"], "criteria": group.get("criteria")},
        "source": group.get("source"),
        "reference_answer": group.get("reference_answer"),
        "extra": group.get("extra"),
        "responses": [one.get("text") for one in rollouts],
    }
