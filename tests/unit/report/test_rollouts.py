"""Rollout files counted by hand: checks, revisions, samples, changes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from herl_megatron.report.derived import pooled, with_derived
from herl_megatron.report.records import read_records
from herl_megatron.report.rollouts import (
    CriterionNames,
    Tally,
    changes,
    read_rollout_stats,
    sample_records,
)
from herl_megatron.report.runs import ReportedRun, group_runs, read_run
from herl_megatron.report.tables import check_lines
from tests.unit.report.run_folders import group, make_run, response, write_step

LINES = [
    {"step": 0, "eval/reward": 0.25, "eval/check/text/all_lowercase": 0.5},
    {
        "step": 0, "scoring/unscored": 2, "hindsight/revisions": 4, "hindsight/accepted": 1,
        "train/revision_ratio_mean": 0.75, "train/revision_tokens": 5,
    },
    {
        "step": 1, "scoring/unscored": 0, "hindsight/revisions": 0, "hindsight/accepted": 0,
        "train/revision_ratio_mean": 0.0, "train/revision_tokens": 0,
    },
    {"step": 2, "eval/reward": 0.75, "eval/check/text/all_lowercase": 0.75},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> ReportedRun:
    """Step 0: lowercase met by 1 of 3 scored, politeness by 2 of 3; step 1: 2 of 2 and 0 of 2."""
    path = make_run(tmp_path, seed=0, lines=LINES)
    first = group(
        "p0",
        [response(0, ["c1"], ["c2"]), response(1, ["c2"], ["c1"]), response(2, [], [])],
        [
            response(0, ["c1", "c2"], [], parent=1, accepted=True, replaces=2),  # mends c1
            response(1, ["c1"], ["c2"], parent=0, accepted=False, replaces=None),  # c2 still unmet
            response(2, [], [], parent=0, accepted=False, replaces=None),  # unscored
        ],
    )
    write_step(path, 0, [group("p9", [response(0, ["c2"], ["c1"])]), first])
    write_step(path, 1, [group("p1", [response(0, ["c1"], ["c2"]), response(1, ["c1"], ["c2"])])])
    return read_run(path)


def test_satisfaction_by_check(run: ReportedRun) -> None:
    stats = read_rollout_stats(run, CriterionNames.of(run))
    assert stats.satisfied == {
        "text/all_lowercase": {0: Tally(1, 3), 1: Tally(2, 2)},
        "judge": {0: Tally(2, 3), 1: Tally(0, 2)},
    }
    assert stats.mended == {"text/all_lowercase": Tally(1, 1), "judge": Tally(0, 1)}
    assert stats.revised_steps == [0]


def test_derived_curves(run: ReportedRun) -> None:
    stats = read_rollout_stats(run, CriterionNames.of(run))
    derived = with_derived(run, stats)
    metrics = derived.metrics
    assert derived.steps == run.steps == 2
    assert metrics["check/text/all_lowercase"] == {0: 1 / 3, 1: 1.0}
    assert metrics["derived/unscored_share"] == {0: 0.25, 1: 0.0}  # of 2 prompts x 4
    assert metrics["derived/accepted_share"] == {0: 0.25}  # nothing was revised in step 1
    ratio = metrics["train/revision_ratio_mean"]
    assert ratio[0] == 0.75 and math.isnan(ratio[1])  # step 1 trained on no revision


def test_windows_pool_counts_and_not_shares() -> None:
    tallies = {0: Tally(1, 1), 2: Tally(0, 3), 3: Tally(1, 2), 8: Tally(1, 4)}
    assert pooled(tallies, window=3) == {1: 0.25, 4: 0.5, 7: 0.25}


def test_table_of_checks(run: ReportedRun) -> None:
    stats = read_rollout_stats(run, CriterionNames.of(run))
    (found,) = group_runs([run])
    judged, lowercase = check_lines(found, [stats])
    assert (judged.name, judged.before, judged.drafts) == ("judge", None, Tally(2, 5))
    assert (lowercase.before, lowercase.after) == (0.5, 0.75)
    assert (lowercase.drafts, lowercase.mended) == (Tally(3, 5), Tally(1, 1))


def test_a_sample_is_the_first_revised_group_of_its_step(run: ReportedRun) -> None:
    stats = read_rollout_stats(run, CriterionNames.of(run))
    chosen = sample_records(run, stats, count=3)
    assert [(step, record["prompt_id"]) for step, record in chosen] == [(0, "p0")]
    assert sample_records(run, stats, count=0) == []


def test_without_revisions_samples_are_first_groups_spread_evenly(tmp_path: Path) -> None:
    path = make_run(tmp_path, seed=0, lines=LINES, steps=9)
    for step in range(9):
        write_step(path, step, [group(f"p{step}", [response(0, ["c1"], ["c2"])]) for _ in "ab"])
    run = read_run(path)
    chosen = sample_records(run, read_rollout_stats(run, CriterionNames.of(run)), count=3)
    assert [record["prompt_id"] for _, record in chosen] == ["p0", "p4", "p8"]


def test_samples_are_spread_over_the_steps_that_revised(tmp_path: Path) -> None:
    path = make_run(tmp_path, seed=0, lines=LINES, steps=9)
    drafts = [response(0, ["c1"], ["c2"])]
    for step in range(9):
        revised = [response(0, ["c1"], ["c2"], parent=0)] if step in (5, 6, 7) else []
        write_step(path, step, [group(f"p{step}", drafts, revised)])
    run = read_run(path)
    chosen = sample_records(run, read_rollout_stats(run, CriterionNames.of(run)), count=2)
    assert [step for step, _ in chosen] == [5, 7]


def test_older_files_take_names_from_the_rows(run: ReportedRun) -> None:
    record = dict(next(iter(read_records(run.rollout_files()[0][1]))))
    del record["criteria"]
    assert CriterionNames.of(run).text(record) == {}
    rows = Path(str(run.settings["data.train"]))
    rows.parent.mkdir()
    row = {"id": "p9", "rubric": {"criteria": [{"id": "c1", "check": "a/b", "description": "Do."}]}}
    rows.write_text(json.dumps(row) + "\nnot json\n")
    assert CriterionNames.of(run).text(record) == {"c1": "Do."}
    assert CriterionNames.of(run).check(record) == {"c1": "a/b"}


def test_what_is_no_rollout_file_is_named(run: ReportedRun) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1 is no group"):
        list(read_records(run.path / "metrics.jsonl"))


def test_changes_word_by_word() -> None:
    assert changes("the old owl sleeps", "the owl sleeps now") == [
        ("same", "the "), ("removed", "old "), ("same", "owl "), ("removed", "sleeps"),
        ("added", "sleeps now"),
    ]  # fmt: skip
    assert changes("one two", "three four") == [("same", "three four")]  # nothing in common
    assert changes("", "new") == [("same", "new")]
