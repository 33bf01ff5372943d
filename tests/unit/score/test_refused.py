"""`herl score` with a judge whose provider refuses a text."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fake_judge import fake_judge
from tests.unit.score.score_cases import read_totals, row, score, scored, write

OWL = {"id": "owl", "kind": "judge", "description": 'The response contains the word "owl".'}
ROWS = [row(f"a{i}", [OWL], response=f"An owl, number {i}.") for i in range(61)]
MODERATED = "An owl, number 30."


def test_one_moderated_text_of_61_costs_one_score(tmp_path: Path) -> None:
    """It ended the command at that row, however often it was started again."""
    source, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "scores.jsonl"
    refused = "says403:the text was flagged"
    with fake_judge(lambda text, call: refused if text == MODERATED else "ok") as judge:
        options = ("--judge", judge.url, "--judge-model", "m", "--judge-set", "cache=",
                   "--judge-set", "concurrency=4")  # fmt: skip
        totals = scored(source, out, *options)
        assert judge.calls.total() == 61 + 2  # the preflight's and the probe
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [item["id"] for item in ROWS]
    bad = lines.pop(30)
    assert bad["status"] != "scored" and bad["reward"] is None
    assert all(line["status"] == "scored" and line["reward"] == 1.0 for line in lines)
    assert totals["mean_reward"] == 1.0 and "the text was flagged" in json.dumps(totals)


def test_a_revoked_key_stops_it_with_the_servers_words(tmp_path: Path) -> None:
    source, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "scores.jsonl"
    with fake_judge() as judge:
        judge.script = lambda text, call: (
            "ok" if judge.calls.total() <= 20 else "says401:key revoked"
        )
        options = ("--judge", judge.url, "--judge-model", "m", "--judge-set", "cache=",
                   "--judge-set", "concurrency=4")  # fmt: skip
        stopped = score(source, out, *options)
        assert judge.calls.total() <= 20 + 4 + 1
        said = " ".join(stopped.output.split())
        assert stopped.exit_code == 1 and "key revoked" in said and "the same command" in said
        judge.script = lambda text, call: "ok"
        scored(source, out, *options)
    assert read_totals(out)["mean_reward"] == 1.0


def test_a_cap_stops_it_keeps_what_is_scored_and_outlives_the_start(tmp_path: Path) -> None:
    """One call of the preflight's and one a row: a cap of 13 is 12 rows; 20 is 6 more (the start
    again asks one question too)."""
    rows = [row(f"r{n}", [OWL], response=f"An owl, number {n}.") for n in range(30)]
    source = write(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    with fake_judge() as judge:
        options = ("--judge", judge.url, "--judge-model", "m", "--judge-set", "cache=",
                   "--judge-set", "concurrency=1")  # fmt: skip
        stopped = score(source, out, *options, "--judge-set", "max_calls=13")
        assert stopped.exit_code == 1
        assert "judge.max_calls 13 is reached: 13 calls" in stopped.output
        assert judge.calls.total() == 13 and len(out.read_text().splitlines()) == 12
        again = score(source, out, *options, "--judge-set", "max_calls=13")
        assert again.exit_code == 2 and judge.calls.total() == 13
        more = score(source, out, *options, "--judge-set", "max_calls=20")
        assert more.exit_code == 1
        assert judge.calls.total() == 20 and len(out.read_text().splitlines()) == 18
        assert score(source, out, *options).exit_code == 0
    assert len(out.read_text().splitlines()) == 30
