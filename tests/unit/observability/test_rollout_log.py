"""Rollouts as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herl_megatron.batching.rows import build_rows
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from herl_megatron.observability.rollout_log import group_record, write_rollouts
from herl_megatron.types import CriterionResult, Replay, Scored, ScoredGroup, Verdict
from tests.unit.hindsight.groups import make_group

ALGORITHM = AlgorithmConfig()


def _joined(group: ScoredGroup, **options: Any) -> Any:
    built = build_rows(group, HindsightConfig(**options), ALGORITHM, 0)
    return json.loads(json.dumps(group_record(group, built.rows, built.origins), allow_nan=False))


def test_a_record_says_what_happened_to_every_response() -> None:
    group = make_group([0.25, 0.5, None, 0.0], [(1, 1.0), (1, 0.0)], too_long=2)
    record = _joined(group)
    assert record["prompt_id"] == "p0"
    assert record["messages"] == [{"role": "user", "content": "Say hello."}]
    assert record["experiences_too_long"] == 2 and record["copies"] == []
    first, best, unscored, worst = record["rollouts"]
    assert (first["text"], first["tokens"], first["weight_version"]) == ("t0", 2, 7)
    assert first["finish_reason"] == "stop"
    assert (best["reward"], best["satisfied"], best["unmet"]) == (0.5, ["short"], ["polite"])
    assert best["row"]["reward"] == pytest.approx(0.525)  # with its bonus
    assert (unscored["reward"], unscored["unscored"]) == (None, "judge: HTTP 401")
    assert unscored["row"] == {"reward": None, "advantage": 0.0, "weight": 0.0}
    assert worst["row"] is None  # gave way
    # 0.25, 0.525, 1.0: mean 0.591667, sample std 0.379418
    assert first["row"]["advantage"] == pytest.approx(-0.900264, abs=5e-7)
    joined, refused = record["revisions"]
    assert (joined["parent"], joined["accepted"], joined["replaces"]) == (1, True, 3)
    assert (joined["experience"], joined["reward"]) == ("fix t1", 1.0)
    assert joined["row"]["advantage"] == pytest.approx(1.075925, abs=5e-7)
    assert (refused["accepted"], refused["replaces"], refused["row"]) == (False, None, None)


def test_verdicts_are_kept_as_judged() -> None:
    group = make_group([0.0])
    result = CriterionResult("polite", Verdict.UNVERIFIABLE, "no data", for_every_response=True)
    score = Scored(0.0, (result,), (), ("short",))
    record = group_record(ScoredGroup(group.group, (score,)))
    assert record["rollouts"][0]["verdicts"] == [
        {"criterion": "polite", "verdict": "unverifiable", "reason": "no data"}
    ]
    graded = Scored(0.7, (CriterionResult("polite", Verdict.NOT_FOLLOWED, grade=0.7),), (), ())
    record = group_record(ScoredGroup(group.group, (graded,)))
    assert record["rollouts"][0]["verdicts"][0]["grade"] == 0.7


def test_a_copy_names_what_it_overwrote() -> None:
    record = _joined(make_group([0.25, 0.5, 0.5, 0.0], [(1, 0.5)]), no_qualified="copy_best")
    (copy,) = record["copies"]
    assert (copy["of"], copy["replaces"], copy["row"]["reward"]) == (1, 3, 0.5)
    assert record["rollouts"][3]["row"] is None and record["rollouts"][1]["row"] is not None


def test_a_replay_names_its_rollout_prompt_and_row() -> None:
    smaller = Replay(1, "Say hello.", np.array([7], np.int32), ("short",))
    group = replace(make_group([0.0, 0.0]), replays=(smaller,), replays_impossible=3)
    record = _joined(group, method="replay")
    (replay,) = record["replays"]
    assert (replay["of"], replay["prompt"], replay["satisfied"]) == (1, "Say hello.", ["short"])
    assert replay["row"]["reward"] == 1.0 and record["replays_impossible"] == 3
    assert [rollout["row"]["reward"] for rollout in record["rollouts"]] == [0.0, 0.0]


def test_without_the_join_nothing_is_said_about_rows() -> None:
    record = group_record(make_group([0.5], [(0, 1.0)]))
    assert "row" not in record["rollouts"][0] and "accepted" not in record["revisions"][0]


def test_one_line_per_group_and_a_file_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rollouts" / "step_000001.jsonl"
    records = [group_record(make_group([0.5])), {"prompt_id": "\u00e9\n"}]
    write_rollouts(path, records)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt_id"] for line in lines] == ["p0", "\u00e9\n"]

    def broken() -> Iterator[dict[str, Any]]:
        yield records[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_rollouts(path, broken())
    assert path.read_text(encoding="utf-8").splitlines() == lines  # the old file is untouched
