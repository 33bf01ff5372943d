"""Rollouts, verdicts and revisions as JSON lines, one per group, for people and for replay."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.types import (
    Criterion,
    Prompt,
    Revision,
    Rollout,
    RowOrigin,
    Score,
    Scored,
    ScoredGroup,
    TrainRow,
)


def group_record(
    group: ScoredGroup, rows: Sequence[TrainRow] = (), origins: Sequence[RowOrigin] = ()
) -> dict[str, Any]:
    """One group as plain JSON values, with all that its responses are scored by.

    With the group's joined `rows` and their `origins` each rollout and revision carries its
    training reward (bonus included), advantage and weight, `row` being null if it gave way or did
    not join; `copies` lists rows that repeat a rollout. Without them (evaluation, a run that
    stopped before the join) these keys are left out.
    """
    prompt = group.group.prompt
    record: dict[str, Any] = {
        **_prompt(prompt),
        "rollouts": [
            _response(rollout, score)
            for rollout, score in zip(group.group.rollouts, group.scores, strict=True)
        ],
        "revisions": [_revision(revision) for revision in group.revisions],
        "experiences_too_long": group.experiences_too_long,
    }
    if group.replays or group.replays_impossible:
        record["replays"] = [
            {"of": r.rollout_index, "prompt": r.prompt_text, "satisfied": list(r.satisfied)}
            for r in group.replays
        ]
        record["replays_impossible"] = group.replays_impossible
    if origins:
        _add_rows(record, rows, origins)
    return record


def _prompt(prompt: Prompt) -> dict[str, Any]:
    """The whole row, in the log's own form (`data.responses` reads it)."""
    return {
        "prompt_id": prompt.id,
        "source": prompt.source,
        "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
        "criteria": [_criterion(criterion) for criterion in prompt.rubric.criteria],
        "aggregation": prompt.rubric.aggregation,
        "reference_answer": prompt.reference_answer,
        "extra": _plain(prompt.extra),
    }


def _criterion(criterion: Criterion) -> dict[str, Any]:
    return {
        "id": criterion.id,
        "kind": criterion.kind,
        "check": criterion.check,
        "params": _plain(criterion.params),
        "description": criterion.description,
        "weight": criterion.weight,
        "polarity": criterion.polarity,
    }


def _plain(value: Any) -> Any:
    """As JSON can hold it: what Parquet has besides (dates, bytes, NaN) as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def _add_rows(
    record: dict[str, Any], rows: Sequence[TrainRow], origins: Sequence[RowOrigin]
) -> None:
    """Put each joined row with the rollout or revision that it comes from."""
    for rollout in record["rollouts"]:
        rollout["row"] = None
    for revision in record["revisions"]:
        revision |= {"accepted": False, "replaces": None, "row": None}
    for replay in record.get("replays", ()):
        replay["row"] = None
    record["copies"] = []
    for row, origin in zip(rows, origins, strict=True):
        if origin.replay_index is not None:
            record["replays"][origin.replay_index]["row"] = _row(row)
        elif origin.revision_index is not None:
            revision = record["revisions"][origin.revision_index]
            revision |= {"accepted": True, "replaces": origin.replaces, "row": _row(row)}
        elif origin.replaces is not None:
            copy = {"of": origin.rollout_index, "replaces": origin.replaces, "row": _row(row)}
            record["copies"].append(copy)
        else:
            record["rollouts"][origin.rollout_index]["row"] = _row(row)


def write_rollouts(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one line per record; the file appears whole, by rename, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    os.replace(temporary, path)


def _response(rollout: Rollout, score: Score) -> dict[str, Any]:
    completion = rollout.completion
    turns = [{"drawn": t.drawn, "text": t.text, "tokens": t.tokens} for t in rollout.turns]
    return {
        "index": rollout.index,
        "text": rollout.text,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "weight_version": completion.weight_version,
        "segments": [[part.weight_version, part.tokens] for part in completion.segments],
        **_rewards(score),
        "unscored": None if isinstance(score, Scored) else score.reason,
        "satisfied": list(score.satisfied) if isinstance(score, Scored) else [],
        "unmet": list(score.unmet) if isinstance(score, Scored) else [],
        "verdicts": [
            {"criterion": r.criterion_id, "verdict": r.verdict.value, "reason": r.reason}
            | ({} if r.grade is None else {"grade": r.grade})
            for r in score.results
        ],
    } | ({"turns": turns} if turns else {})


def _rewards(score: Score) -> dict[str, float | None]:
    """The reward, and the rubric's where that is another one."""
    if not isinstance(score, Scored):
        return {"reward": None}
    if score.rubric_reward is None:
        return {"reward": score.reward}
    return {"reward": score.reward, "rubric_reward": score.rubric_reward}


def _revision(revision: Revision) -> dict[str, Any]:
    experience = revision.experience
    return _response(revision.rollout, revision.score) | {
        "parent": experience.rollout_index,
        "experience": experience.prompt_text,
    }


def _row(row: TrainRow) -> dict[str, Any]:
    """What a row trains on; an unscored row has no reward."""
    return {"reward": row.reward, "advantage": row.advantage, "weight": row.weight}
