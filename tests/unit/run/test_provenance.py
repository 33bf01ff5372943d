"""Where a run's numbers come from, start by start."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

import herl_megatron
from herl_megatron.config.schema import Config, ModelConfig, RunConfig
from herl_megatron.errors import SavedForResume
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.provenance import read_starts


def config(folder: Path, **how: bool) -> Config:
    run = RunConfig.model_validate({"dir": str(folder), "name": "run"} | how)
    return Config(run=run, model=ModelConfig(path="toy"))


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that the package is imported from, with one commit."""
    package = tmp_path / "source" / "herl_megatron"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("A = 1\n")
    git(tmp_path, "init", "-q", str(package.parent))
    git(package, "add", ".")
    git(package, "commit", "-qm", "first")
    monkeypatch.setattr(herl_megatron, "__file__", str(package / "__init__.py"))
    return package


def test_a_key_on_the_command_line_is_not_kept(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "hf_" + "aB3dE5gH7j" * 3
    monkeypatch.setattr(sys, "argv", ["mine.py", "--token", key, "model.path=models/a", "x=1"])
    with RunFolder.create(config(tmp_path / "runs"), purpose="improve") as folder:
        pass
    (start,) = read_starts(folder.path)
    assert key not in (folder.path / "provenance.json").read_text()
    assert start["command"].startswith("mine.py --token '(not shown")
    assert start["command"].endswith("model.path=models/a x=1")


def test_each_start_is_kept_with_its_end(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["herl", "improve", "my file.yaml", "run.name=run"])
    with (
        pytest.raises(RuntimeError),
        RunFolder.create(config(tmp_path / "runs"), purpose="improve") as folder,
    ):
        folder.log(0, {"reward/mean": 0.5})
        raise RuntimeError("a rank died")
    (checkout / "__init__.py").write_text("A = 2\n")
    (checkout / "new.py").write_text("")
    resumed = config(tmp_path / "runs", resume=True)
    with RunFolder.create(resumed, purpose="improve") as folder:
        folder.take_back()
    first, second = read_starts(folder.path)
    assert first["command"] == "herl improve 'my file.yaml' run.name=run"
    assert first["outcome"] == "RuntimeError: a rank died" and second["outcome"] == "finished"
    for start in (first, second):
        begin, end = (datetime.fromisoformat(start[key]) for key in ("started", "ended"))
        assert begin.tzinfo is not None and begin <= end
        assert start["working_directory"] == os.getcwd() and start["host"]
        assert start["cpu"]["cores"] == len(os.sched_getaffinity(0))
        assert start["versions"]["torch"].startswith("2.")
    commit = git(checkout, "rev-parse", "HEAD")
    assert first["code"] == {"commit": commit, "dirty": False, "untracked": [], "diff": None}
    assert second["code"] == {
        "commit": commit, "dirty": True, "untracked": ["new.py"], "diff": "source.diff",
    }  # fmt: skip
    diff = (folder.path / "source.diff").read_text()
    assert "-A = 1\n+A = 2\n" in diff


def test_every_starts_changes_are_kept_and_equal_ones_once(tmp_path: Path, checkout: Path) -> None:
    """A resume overwrote the changes that the first steps were computed with."""
    for text in ("A = 2\n", "A = 3\n", "A = 2\n"):
        (checkout / "__init__.py").write_text(text)
        again = config(tmp_path / "runs", resume=True)
        with RunFolder.create(again, purpose="improve") as folder:
            folder.take_back()
    starts = read_starts(folder.path)
    assert [start["code"]["diff"] for start in starts] == [
        "source.diff", "source_2.diff", "source.diff",
    ]  # fmt: skip
    assert "-A = 1\n+A = 2\n" in (folder.path / "source.diff").read_text()
    assert "-A = 1\n+A = 3\n" in (folder.path / "source_2.diff").read_text()
    with RunFolder.create(config(tmp_path / "runs", overwrite=True), purpose="improve") as folder:
        pass
    assert not (folder.path / "source_2.diff").exists()  # herl's own, which go with the run


NODES = [
    {"host": "a", "address": "10.0.0.1", "gpus": {"H100": 8}},
    {"host": "b", "address": "10.0.0.2", "gpus": {"H100": 8}},
]


def test_hosts_and_gpus_of_all_nodes_are_recorded(tmp_path: Path, checkout: Path) -> None:
    with RunFolder.create(config(tmp_path / "runs"), purpose="improve") as folder:
        folder.log(0, {"reward/mean": 0.5})
        folder.saw_nodes(NODES)
    resumed = config(tmp_path / "runs", resume=True)
    with RunFolder.create(resumed, purpose="improve") as folder:
        folder.saw_nodes(NODES[1:])  # before it has taken back
        assert len(read_starts(folder.path)) == 1
        folder.take_back()
    assert [start["nodes"] for start in read_starts(folder.path)] == [NODES, NODES[1:]]


def test_an_installed_package_below_a_foreign_repository_has_no_commit(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / ".venv" / "herl_megatron"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(herl_megatron, "__file__", str(installed / "__init__.py"))
    with RunFolder.create(config(tmp_path / "runs")) as folder:
        pass
    (start,) = read_starts(folder.path)
    assert start["code"] == {"commit": None, "dirty": None, "untracked": [], "diff": None}


@pytest.mark.parametrize("damage", ['{"starts": [1, ', "null", '{"starts": [3]}', "[" * 10000])
def test_a_damaged_file_is_kept_aside_and_stops_nothing(
    tmp_path: Path, checkout: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    with RunFolder.create(config(tmp_path / "runs"), purpose="improve") as folder:
        pass
    (folder.path / "provenance.json").write_text(damage)
    again = config(tmp_path / "runs", resume=True)
    with RunFolder.create(again, purpose="improve") as folder:
        folder.take_back()
    assert [start["outcome"] for start in read_starts(folder.path)] == ["finished"]
    kept = folder.path / "provenance.json.before-1"
    assert kept.read_text() == damage
    assert "provenance.json is damaged (" in caplog.text and f"kept as {kept}" in caplog.text


def test_one_that_is_damaged_while_the_run_lasts_is_left(
    tmp_path: Path, checkout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunFolder.create(config(tmp_path / "runs"), purpose="improve") as folder:
        (folder.path / "provenance.json").write_text("half")
    assert (folder.path / "provenance.json").read_text() == "half"
    assert "is damaged" in caplog.text


def test_a_run_that_was_saved_to_go_on_did_not_fail(
    tmp_path: Path, checkout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(SavedForResume),
        RunFolder.create(config(tmp_path / "runs"), purpose="improve") as folder,
    ):
        raise SavedForResume("asked to stop: 3 steps are done and saved")
    (start,) = read_starts(folder.path)
    assert start["outcome"] == "saved to go on: asked to stop: 3 steps are done and saved"
    assert "ended early" not in caplog.text
