"""`herl tasks`: the files it writes, the same every time, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.commands.tasks import main
from herl_megatron.data.prompt_source import load_prompts


def test_rows_are_canonical_and_the_same_every_time(tmp_path: Path) -> None:
    arguments = ["unstated", "--train", "12", "--heldout", "6", "--heldout-topics", "3"]
    for name in ("a", "b"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    train = load_prompts(str(tmp_path / "a/train.jsonl"))
    heldout = load_prompts(str(tmp_path / "a/heldout.jsonl"))
    assert (len(train), len(heldout)) == (12, 6)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "heldout.jsonl", "train.jsonl"
    ]  # fmt: skip


def test_what_is_there_stays_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    arguments = ["stated", "--train", "4", "--heldout", "4", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "already has train.jsonl" in capsys.readouterr().err
    assert (tmp_path / "train.jsonl").read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(load_prompts(str(tmp_path / "train.jsonl"))) == 4


def test_too_many_prompts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unstated", "--train", "999", "--out", str(tmp_path / "x")]) == 2
    assert "999 train prompts" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
