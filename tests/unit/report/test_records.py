"""Rollout files that people cut, joined or copied: refused with file, line and place in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.commands.inspect import main as inspect
from herl_megatron.commands.pairs import main as pairs
from herl_megatron.report.records import read_records
from herl_megatron.report.runs import read_run
from tests.unit.report.run_folders import make_run, response

GROUP: dict[str, Any] = {
    "prompt_id": "p",
    "messages": [{"role": "user", "content": "Write."}],
    "rollouts": [response(0, ["c"], []), response(1, [], ["c"])],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": None}, r"messages: input should be a valid list"),
        ({"messages": ["Write."]}, r"messages\.0: "),
        ({"prompt_id": ["p"]}, r"prompt_id: "),
        ({"rollouts": []}, r"rollouts: "),
        ({"rollouts": [{**GROUP["rollouts"][0], "text": None}]}, r"rollouts\.0\.text: "),
        ({"rollouts": [{**GROUP["rollouts"][0], "reward": "1"}]}, r"rollouts\.0\.reward: "),
        ({"rollouts": [{"index": 0, "text": "a"}]}, r"rollouts\.0\.reward: field required"),
        ({"revisions": 5}, r"revisions: "),
        ({"revisions": [{**GROUP["rollouts"][0], "parent": 9}]}, r"revisions\.0\.parent is 9"),
    ],
)
def test_a_rollout_file_that_was_edited_is_no_traceback(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = tmp_path / "step_000001.jsonl"
    file.write_text(json.dumps(GROUP) + "\n" + json.dumps(GROUP | change) + "\n")
    with pytest.raises(ValueError, match=rf"step_000001\.jsonl:2 is no group .*{said}"):
        list(read_records(file))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt_id": ' + b"[" * 5000, ":1: .*nested too deep"),
        (b'{"prompt_id": "\xe9"}', ":1: not UTF-8"),
        (b'{"prompt_id": ' + b"9" * 5000 + b"}", ":1: .*thousands of digits"),
        (json.dumps(GROUP | {"prompt_id": "\ud83d"}).encode(), ":1: .*half a character"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / "step_000001.jsonl"
    file.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=said):
        list(read_records(file))


def test_inspect_and_pairs_end_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "step_000001.jsonl", tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(GROUP | {"rollouts": 5}) + "\n")
    with pytest.raises(SystemExit) as end:
        inspect([str(file)])
    assert end.value.code == 2 and f"{file}:1" in capsys.readouterr().err
    assert pairs([str(file), "--out", str(out)]) == 2
    assert f"{file}:1" in capsys.readouterr().err and not out.exists()
    file.write_text(json.dumps(GROUP) + "\n")
    assert pairs([str(file), "--out", str(file / "x")]) == 2
    assert pairs([str(file), "--out", str(out), "--margin", "nan"]) == 2
    assert "--margin is nan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.jsonl", '{"step": "0"}\n{"step": 1}\n', r"metrics\.jsonl:1 .*step is '0'"),
        ("metrics.jsonl", '{"step": 0, "a": [1]}\n{"step": 1}\n', r"metrics\.jsonl:1 .*a is \[1\]"),
        ("metrics.jsonl", "[" * 5000 + '\n{"step": 1}\n', r"metrics\.jsonl:1 "),
        ("summary.json", "[]", r"summary\.json holds \[\]"),
        ("summary.json", '{"seconds": {"train": "x"}}', r"summary\.json: seconds is "),
        ("config.yaml", "run: {seed: x}", r"config\.yaml: run\.seed is 'x'"),
        ("config.yaml", "run: 5", r"config\.yaml is no configuration"),
    ],
)
def test_a_run_whose_files_were_edited_is_refused_with_the_file(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    run = make_run(tmp_path, seed=0, lines=[{"step": 0, "a": 1.0}])
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_run(run)
