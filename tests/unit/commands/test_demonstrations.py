"""`herl data sft` and `herl data pairs`: rows for fine-tuning and DPO, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.commands.data import main
from herl_megatron.data.preference_pairs import load_pairs
from herl_megatron.data.prompt_source import load_sft_rows
from herl_megatron.types import Message

NO_COMMA = {"criteria": [{"id": "a", "kind": "rule", "check": "ifeval/punctuation:no_comma"}]}


def write(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def row(name: str, text: str, reference: str | None) -> dict[str, Any]:
    return {"id": name, "messages": prompt(text), "rubric": NO_COMMA,
            "source": "mine", "reference_answer": reference}  # fmt: skip


def group(text: str, *answers: tuple[float | None, str] | tuple[float | None, str, str],
          revisions: Sequence[tuple[float, str]] = ()) -> dict[str, Any]:  # fmt: skip
    def response(reward: float | None, said: str, why: str = "stop") -> dict[str, Any]:
        return {"reward": reward, "text": said, "finish_reason": why}

    return {"prompt_id": f"id of {text}", "messages": prompt(text), "source": "mine",
            "rollouts": [response(*answer) for answer in answers],
            "revisions": [response(*revision) for revision in revisions]}  # fmt: skip


def counts(printed: str) -> dict[str, int]:
    lines = [line.split(maxsplit=1) for line in printed.splitlines()[:-1]]
    return {name: int(count) for count, name in lines}


ROWS = (
    row("a", "A?", "Short and good."), row("b", "B?", "Bad, very."), row("c", "C?", None),
    row("d", "D?", " "), row("e", "A?", "Another one."), row("f", "F?", "Fine."),
)  # fmt: skip


def test_reference_answers_become_rows_to_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "new" / "sft.jsonl"
    assert main(["sft", "--references", str(rows), "--out", str(out)]) == 0
    found = counts(capsys.readouterr().out)
    assert found == {"rows": 3, "no reference answer": 2, "repeated prompt": 1}
    learnt = [one.messages for one in load_sft_rows(str(out))]
    assert learnt[0] == (Message("user", "A?"), Message("assistant", "Short and good."))
    assert [messages[-1].content for messages in learnt] == [
        "Short and good.",
        "Bad, very.",
        "Fine.",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["sft.jsonl"]
    assert main(["sft", "--references", str(rows), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_references_are_scored_once_and_filtered_by_their_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rule, no comma: rewards 1, 0 and 1."""
    rows, out = write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "sft.jsonl"
    given = ["sft", "--references", str(rows), "--out", str(out), "--min-reward"]
    assert main([*given, "0.5"]) == 0
    found = counts(capsys.readouterr().out)
    assert found == {
        "rows": 2, "no reference answer": 2, "repeated prompt": 1, "below the reward": 1,
    }  # fmt: skip
    first = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["id"] for one in first] == ["a", "f"]
    assert first[0]["extra"] == {
        "prompt_id": "a", "made_of": "reference answer", "reward": 1.0,
    }  # fmt: skip
    scores = tmp_path / "sft.jsonl.scores.jsonl"
    before = scores.stat().st_ino, scores.read_bytes()
    lines = scores.read_text().splitlines()
    assert [json.loads(line)["reward"] for line in lines] == [1.0, 0.0, 1.0]
    # What was stopped goes on: the last line is gone, and comes again.
    scores.write_text("".join(f"{line}\n" for line in lines[:2]))
    assert main([*given, "0", "--overwrite"]) == 0
    assert counts(capsys.readouterr().out)["rows"] == 3
    assert scores.read_bytes() == before[1]
    other = tmp_path / "other.jsonl"
    taken = ["sft", "--references", str(rows), "--scores", str(scores), "--min-reward", "0.5"]
    assert main([*taken, "--out", str(other)]) == 0
    capsys.readouterr()
    assert [json.loads(line) for line in other.read_text().splitlines()] == first
    scores.write_text("".join(f"{line}\n" for line in lines[:2]))  # one was never scored
    assert main([*taken, "--out", str(other), "--overwrite"]) == 0
    assert counts(capsys.readouterr().out)["unscored"] == 1


GROUPS = (
    group("A?", (0.5, "half"), (None, "unscored"), (0.8, "best"), (0.8, "also best"),
          (1.0, "cut", "length"), revisions=[(0.9, "revised")]),
    group("B?", (0.3, "low"), (0.2, "lower")),
    group("C?", (None, "x"), (None, "y")),
    group("D?", (1.0, "cut", "length"), (1.0, " ")),
)  # fmt: skip


def test_the_best_own_answer_to_each_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over all steps of a run; the evaluations of a training run are held out."""
    rollouts = tmp_path / "run" / "rollouts"
    rollouts.mkdir(parents=True)
    write(rollouts / "step_000000.jsonl", *GROUPS)
    write(rollouts / "step_000001.jsonl", group("B?", (0.4, "later")))
    write(rollouts / "eval_000001.jsonl", group("E?", (1.0, "held out")))
    out = tmp_path / "sft.jsonl"
    given = ["sft", "--best-of", str(tmp_path / "run"), "--out", str(out), "--overwrite"]
    assert main(given) == 0
    assert counts(capsys.readouterr().out) == {
        "rows": 2, "no answer is scored": 1, "every scored answer is cut or empty": 1,
        "repeated prompt: its answers compete with the earlier ones": 1,
    }  # fmt: skip
    assert [one.messages[-1].content for one in load_sft_rows(str(out))] == ["best", "later"]
    first = json.loads(out.read_text().splitlines()[0])
    assert first["extra"] == {"prompt_id": "id of A?", "made_of": "best of 5", "reward": 0.8}
    assert main([*given, "--revisions", "--min-reward", "0.5"]) == 0
    assert counts(capsys.readouterr().out)["below the reward"] == 1
    assert [one.messages[-1].content for one in load_sft_rows(str(out))] == ["revised"]
    assert main([*given, "--min-reward", "0.95"]) == 2
    assert "no answer makes a row (below the reward: 2" in capsys.readouterr().err
    assert [one.messages[-1].content for one in load_sft_rows(str(out))] == ["revised"]


def scored_rows(folder: Path) -> tuple[Path, Path]:
    """Two prompts; of `herl score` the lines that the commands read."""
    rows = write(
        folder / "rows.jsonl",
        {"id": "a", "messages": prompt("A?"), "rubric": NO_COMMA, "responses": ["x, y", "xy", "z"]},
        {"id": "b", "messages": prompt("B?"), "rubric": NO_COMMA, "response": "u, v"},
    )
    scores = write(
        folder / "scores.jsonl",
        {"id": "a", "made_from": "0", "responses": [{"reward": 0.0}, {"reward": 1.0},
                                                    {"reward": None}]},
        {"id": "b", "made_from": "0", "reward": 0.0},
    )  # fmt: skip
    return rows, scores


def test_what_was_scored_is_told_by_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, scores = scored_rows(tmp_path)
    given = [str(scores), "--rows", str(rows), "--out", str(tmp_path / "out.jsonl"), "--overwrite"]
    assert main(["sft", "--best-of", *given]) == 0
    assert counts(capsys.readouterr().out) == {"rows": 2}
    answers = [one.messages[-1].content for one in load_sft_rows(str(tmp_path / "out.jsonl"))]
    assert answers == ["xy", "u, v"]
    assert main(["pairs", *given]) == 0
    (pair,) = load_pairs(str(tmp_path / "out.jsonl"))
    assert (pair.chosen, pair.rejected) == ("xy", "x, y")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sft --best-of {scores}", "has no texts: name the rows that were scored with --rows"),
        ("sft --best-of {scores} --rows {refs}", "the row has neither of 'response'"),
        ("sft --best-of {groups} --rows {rows}", "none of the files is that"),
        ("sft --best-of {rows}", "rows.jsonl:1 is no group of rollouts"),
        ("sft --best-of nowhere", "nowhere is no rollout file and no run with"),
        ("sft --references nowhere", "nowhere: there is no such file"),
        ("sft --references {none}", "none of the 1 rows has a reference_answer"),
        ("sft --references {refs} --min-reward nan", "--min-reward is nan"),
        ("sft --references {refs} --revisions", "are for --best-of"),
        ("sft --references {refs} --scores {scores}", "nothing without --min-reward"),
        ("sft --references {refs} --scores {groups} --min-reward 1",
         "groups.jsonl:1 is no line of `herl score`"),
        ("sft --references {refs} --scores {scores} --min-reward 1", "has 3 responses"),
        ("sft --references {judged} --min-reward 1", "judge"),
        ("pairs {groups} --margin 0", "--margin is 0.0"),
        ("pairs {groups} --scores {scores}", "--scores is for --references"),
        ("pairs {groups} --references {refs} --revisions", "the chosen answer is the reference"),
        ("pairs {groups} --references {none}", "none of the 1 rows has a reference_answer"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rows, scores = scored_rows(tmp_path)
    judged = {"criteria": [{"id": "j", "kind": "judge", "description": "Is good."}]}
    files = {
        "rows": rows, "scores": scores, "groups": write(tmp_path / "groups.jsonl", *GROUPS),
        "refs": write(tmp_path / "refs.jsonl", *ROWS),
        "none": write(tmp_path / "none.jsonl", row("a", "A?", None)),
        "judged": write(tmp_path / "judged.jsonl", row("a", "A?", "x") | {"rubric": judged}),
    }  # fmt: skip
    given = arguments.format(**{name: path.name for name, path in files.items()}).split()
    assert main([*given, "--out", "out.jsonl"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_pairs_of_the_reference_and_the_worst_own_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A: reference 1.0 against 0.5; B: reference 0.0 against 0.2; C, D and X make none."""
    refs = write(tmp_path / "refs.jsonl", *ROWS)
    groups = write(tmp_path / "groups.jsonl", *GROUPS, group("X?", (0.5, "x")))
    out = tmp_path / "pairs.jsonl"
    given = ["pairs", str(groups), "--references", str(refs), "--out", str(out), "--overwrite"]
    assert main(given) == 0
    assert counts(capsys.readouterr().out) == {"pairs": 2, "no reference answer": 3}
    first, second = load_pairs(str(out))
    assert (first.id, first.chosen, first.rejected) == (f"{groups}:1", "Short and good.", "half")
    assert (second.chosen, second.rejected) == ("Bad, very.", "lower")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "groups.jsonl", "pairs.jsonl", "refs.jsonl",
    ]  # fmt: skip
    assert main([*given, "--margin", "0.5"]) == 0
    assert counts(capsys.readouterr().out) == {
        "pairs": 1, "no reference answer": 3, "rewards too close": 1,
    }  # fmt: skip
    assert [pair.chosen for pair in load_pairs(str(out))] == ["Short and good."]
    assert main([*given, "--margin", "0.51"]) == 2
    assert "no group makes a pair (no reference answer: 3; rewards too close: 2)" in (
        capsys.readouterr().err
    )


def test_a_margin_leaves_out_what_has_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refs = write(tmp_path / "refs.jsonl", *ROWS)
    groups = write(tmp_path / "groups.jsonl", group("A?", (None, "x")), group("F?", (0.0, "y, z")))
    out = tmp_path / "pairs.jsonl"
    given = ["pairs", str(groups), "--references", str(refs), "--out", str(out), "--overwrite"]
    assert main([*given, "--margin", "0.5"]) == 0
    assert counts(capsys.readouterr().out) == {"pairs": 1, "unscored": 1}
    assert main(given) == 0
    assert [pair.rejected for pair in load_pairs(str(out))] == ["x", "y, z"]
