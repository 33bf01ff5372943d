"""Preference rows: what is read, what is refused, and what a run's groups turn into."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.data.preference_pairs import load_pairs, pair_from_group
from herl_megatron.types import Message

ROOT = Path(__file__).parents[3]
ROW = {
    "id": "a", "messages": [{"role": "user", "content": "Hi."}], "chosen": "Yes.",
    "rejected": "No.",
}  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_are_read_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", ROW, ROW | {"id": "b", "source": "mine"})
    first, second = load_pairs(path)
    assert (first.where, first.id) == (f"{path}:1", "a")
    assert first.messages == (Message("user", "Hi."),)
    assert (second.chosen, second.rejected) == ("Yes.", "No.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rejected": "Yes."}, "the same text"),
        ({"rejected": ""}, "rejected is empty"),
        ({"chosen": None}, "'chosen' is missing"),
        ({"chosen": [{"role": "assistant", "content": "Yes."}]}, "chosen must be a string"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the last role is 'assistant'"),
        ({"choosen": "x"}, "did you mean 'chosen'"),
        ({"id": "first"}, "already used in line 1"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "pairs.jsonl", ROW | {"id": "first"}, ROW | change)
    with pytest.raises(ValueError, match=f"{path}:2: .*{said}"):
        load_pairs(path)


def response(reward: float | None, text: str, finish_reason: str = "stop") -> dict[str, Any]:
    return {"reward": reward, "text": text, "finish_reason": finish_reason}


GROUP = {
    "prompt_id": "p",
    "messages": ROW["messages"],
    "rollouts": [
        response(0.5, "half"),
        response(None, "unscored"),
        response(0.2, "worst"),
        response(0.2, "also worst"),
        response(0.8, "best"),
        response(0.8, "also best"),
        response(0.1, "cut", "length"),
    ],
    "revisions": [response(0.9, "revised"), response(0.0, "spoilt"), response(None, "lost")],
}


def test_a_group_gives_its_best_and_its_worst_scored_response() -> None:
    assert pair_from_group(GROUP, margin=0.1, revisions=False) == ("best", "worst")
    assert pair_from_group(GROUP, margin=0.1, revisions=True) == ("revised", "worst")
    assert pair_from_group(GROUP, margin=0.65, revisions=False) == "rewards too close"
    assert pair_from_group(GROUP, margin=0.65, revisions=True) == ("revised", "worst")


def test_groups_without_two_scored_responses_give_none() -> None:
    for rollouts in ([response(None, "a"), response(0.5, "b")], [response(1.0, "a", "length")]):
        found = pair_from_group({"rollouts": rollouts}, margin=0.1, revisions=True)
        assert found == "fewer than two scored responses that end"
    same = {"rollouts": [response(0.0, "a"), response(1.0, "a")]}  # a judge that changed its mind
    assert pair_from_group(same, margin=0.1, revisions=False) == "empty or equal texts"


def make_pairs(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools/make_pairs.py", *map(str, arguments)],
        capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_tool_writes_what_dpo_reads(tmp_path: Path) -> None:
    """Two runs of one name in other folders, as seeds have them: ids differ."""
    for seed in ("seed0", "seed1"):
        (tmp_path / seed / "run" / "rollouts").mkdir(parents=True)
    folder = tmp_path / "seed0" / "run" / "rollouts"
    close = GROUP | {"prompt_id": "q", "rollouts": [response(0.5, "a"), response(0.5, "b")]}
    write(folder / "step_000000.jsonl", GROUP, close)
    write(folder / "step_000001.jsonl", GROUP)
    write(folder / "eval_000001.jsonl", GROUP)
    other = tmp_path / "seed1" / "run" / "rollouts" / "step_000000.jsonl"
    write(other, GROUP | {"prompt_id": "r"})
    out = tmp_path / "new folder" / "pairs.jsonl"
    out.parent.mkdir(exist_ok=True)
    out.write_text("mine")
    sources = (tmp_path / "seed0" / "run", tmp_path / "seed1" / "run")
    done = make_pairs(*sources, "--out", out)
    assert done.returncode == 2 and "is there already" in done.stderr
    assert out.read_text() == "mine"
    done = make_pairs(*sources, "--out", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == [
        "       2  pairs", "       1  rewards too close", "       1  seen before",
    ]  # fmt: skip
    first, second = load_pairs(str(out))
    assert (first.id, second.id) == (f"{folder}/step_000000.jsonl:1", f"{other}:1")
    assert (first.chosen, first.rejected) == ("best", "worst")


def test_groups_that_make_no_pair_are_an_error_that_writes_nothing(tmp_path: Path) -> None:
    rollouts = write(tmp_path / "step_000000.jsonl", GROUP)
    done = make_pairs(rollouts, "--margin", 0.9, "--out", tmp_path / "pairs.jsonl")
    assert done.returncode == 2
    assert "no group makes a pair (rewards too close: 1)" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000.jsonl"]
