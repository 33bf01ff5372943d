"""The comparison with a reference's verdicts finds what differs, and counts what is undecided."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools.bench.check_verdicts import main

REFERENCE = '''
import absl.logging


class NoComma:
    def __init__(self, name):
        pass

    def build_description(self):
        pass

    def check_following(self, response):
        return "," not in response


class Words(NoComma):
    """Wrong where there are none, and raises on more than one line."""

    def build_description(self, num_words, relation):
        self.bound, self.relation = num_words, relation

    def check_following(self, response):
        if "\\n" in response:
            raise ValueError
        count = len(response.split())
        return count >= self.bound if self.relation == "at least" else count < self.bound


INSTRUCTION_DICT = {"punctuation:no_comma": NoComma, "length_constraints:number_words": Words}
'''


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name in ("instructions_registry", "absl", "absl.logging", "spacy", "spacy.cli"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "instructions_registry.py").write_text(REFERENCE)
    (tmp_path / "responses.jsonl").write_text(json.dumps({"response": "An owl, and a mouse"}))
    return ["--benchmark", "ifeval", "--reference", str(tmp_path), "--rows",
            str(tmp_path / "rows.jsonl"), "--responses", str(tmp_path / "responses.jsonl"),
            "--cases", "200"]  # fmt: skip


def rows(tmp_path: Path, name: str, **kwargs: object) -> None:
    row = {"instruction_id_list": [name], "kwargs": [kwargs]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")


def test_equal_verdicts_pass(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path, "punctuation:no_comma")
    assert main(arguments) == 0
    assert "100.0000% of 200 verdicts are equal; 0 cases" in capsys.readouterr().out


def test_differences_are_shown_and_fail(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path, "length_constraints:number_words", num_words=5.0, relation="at least", x=None)
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert "length_constraints:number_words: " in said and ": reference False, ours True" in said
    assert " 0 cases are decided" not in said
