"""One line of `herl score`'s output: the scores of one row, to JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from herl_megatron.data.responses import ResponseRow
from herl_megatron.rubrics.rubric import score_response
from herl_megatron.types import CriterionResult, Rubric, Score, Scored, Unscored, Verdict

Loose = Sequence[Sequence[CriterionResult]]
"""Of each response its loose verdicts (`commands.loose`); empty where nobody asks for them."""


def row_record(
    row: ResponseRow, scores: Sequence[Score], made_from: str, *, loose: Loose = ()
) -> dict[str, Any]:
    """The line of a row: flat for `response`, a list for `responses`; then loose verdicts.

    `made_from` says what the scores depend on (see `ScoreFile`).
    """
    head = {"id": row.prompt.id, "made_from": made_from}
    tail = {"loose": [[_verdict(r) for r in results] for results in loose]} if loose else {}
    if row.listed:
        return head | {"responses": [_record(score) for score in scores]} | tail
    (score,) = scores
    return head | _record(score) | tail


def scores_of(row: ResponseRow, record: Mapping[str, Any]) -> list[Score]:
    """The scores that a line was made from."""
    entries = record["responses"] if row.listed else [record]
    return [_score(row.prompt.rubric, entry) for entry in entries]


def loose_of(record: Mapping[str, Any]) -> tuple[tuple[CriterionResult, ...], ...]:
    """The loose verdicts of each response that a line was made from."""
    return tuple(_results(verdicts) for verdicts in record.get("loose", ()))


def is_complete(record: Mapping[str, Any], *, loose: bool) -> bool:
    """Whether every response of the line has a score, and `loose` verdicts where they are asked
    for."""
    if loose and "loose" not in record:
        return False
    return all(entry["status"] == "scored" for entry in record.get("responses", [record]))


def _record(score: Score) -> dict[str, Any]:
    scored = isinstance(score, Scored)
    record: dict[str, Any] = {
        "reward": score.reward if isinstance(score, Scored) else None,
        "status": "scored" if scored else "unscored",
    }
    if isinstance(score, Unscored):
        record["reason"] = score.reason
    return record | {"verdicts": [_verdict(result) for result in score.results]}


def _verdict(result: CriterionResult) -> dict[str, Any]:
    verdict: dict[str, Any] = {"id": result.criterion_id, "verdict": result.verdict.value}
    if result.grade is not None:
        verdict["grade"] = result.grade
    return verdict | ({"reason": result.reason} if result.reason else {})


def _score(rubric: Rubric, entry: Mapping[str, Any]) -> Score:
    results = _results(entry["verdicts"])
    if entry["status"] == "unscored":
        return Unscored(entry["reason"], results)
    return score_response(rubric, results)


def _results(verdicts: Sequence[Mapping[str, Any]]) -> tuple[CriterionResult, ...]:
    """A scored response's unverifiable criteria are those that were left out for every response;
    of one that has no score nobody asks."""
    return tuple(
        CriterionResult(
            verdict["id"],
            Verdict(verdict["verdict"]),
            reason=verdict.get("reason", ""),
            for_every_response=verdict["verdict"] == Verdict.UNVERIFIABLE.value,
            grade=verdict.get("grade"),
        )
        for verdict in verdicts
    )
