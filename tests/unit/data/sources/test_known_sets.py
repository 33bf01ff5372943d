"""HealthBench-500 by hashes of its prompts: found, named, and kept out of training."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.data.sources.catalog import SOURCES
from herl_megatron.data.sources.common import prompt_key
from herl_megatron.data.sources.healthbench_500 import HEALTHBENCH_500
from herl_megatron.data.sources.known_sets import KnownSet
from herl_megatron.data.sources.prepare import Job, prepare
from herl_megatron.data.sources.read import Input
from herl_megatron.data.sources.report import show_report
from herl_megatron.types import Message

KNOWN = ("I ache.", "I cough.")


@pytest.fixture(autouse=True)
def two_known(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = frozenset(prompt_key([Message("user", text)])[:10] for text in KNOWN)
    source = replace(SOURCES["healthbench"], holds=KnownSet("healthbench_2", "Two", hashes))
    monkeypatch.setitem(SOURCES, "healthbench", source)


def file(path: Path, *texts: str, split: str = "") -> Input:
    rows = [
        {"prompt": [{"role": "user", "content": text}], "prompt_id": f"{path.stem}-{n}",
         "rubrics": [{"criterion": "Is short.", "points": 3}]}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Input(str(path), split)


def sources(path: Path) -> list[str]:
    return [prompt.source for prompt in load_prompts(str(path))]


def shown(report: dict[str, Any]) -> str:
    out = io.StringIO()
    show_report(report, Console(file=out, width=200))
    return out.getvalue()


def test_the_hashes_are_500_and_those_of_normalised_prompts() -> None:
    assert len(HEALTHBENCH_500.hashes) == 500
    assert {len(name) for name in HEALTHBENCH_500.hashes} == {10}
    assert all(int(name, 16) >= 0 for name in HEALTHBENCH_500.hashes)
    # SHA-256 of [["user", "an owl"], ["assistant", "x"]]: the 500 hold as long as this does
    key = prompt_key([Message("user", " An  Owl\n"), Message("assistant", "X")])
    assert key == "36a0f8dcd9bc2f2b9354b77ff6b29048e0b8cc2dc6dd68a644bf364bdc19e094"


def test_just_the_known_set_gets_its_name(tmp_path: Path) -> None:
    report = prepare(Job("healthbench", (file(tmp_path / "a.jsonl", *KNOWN),), tmp_path / "out"))
    assert sources(tmp_path / "out/eval.jsonl") == ["healthbench_2"] * 2
    assert report["benchmark"] == {"name": "Two", "there": 2, "of": 2}
    assert "Two: 2 of 2 there" in shown(report)


@pytest.mark.parametrize(("texts", "there"), [((*KNOWN, "I sneeze."), 2), (("i  ACHE.",), 1)])
def test_more_or_less_than_the_set_keeps_its_own_name(
    tmp_path: Path, texts: tuple[str, ...], there: int
) -> None:
    report = prepare(Job("healthbench", (file(tmp_path / "a.jsonl", *texts),), tmp_path / "out"))
    assert sources(tmp_path / "out/eval.jsonl") == ["healthbench"] * len(texts)
    assert report["benchmark"]["there"] == there
    assert f"Two: {there} of 2 there" in shown(report)


def test_training_rows_of_the_set_are_leakage(tmp_path: Path) -> None:
    train = file(tmp_path / "train.jsonl", "I sneeze.", "I COUGH.", "I limp.", split="train")
    test = file(tmp_path / "test.jsonl", *KNOWN, split="test")
    report = prepare(Job("healthbench", (train, test), tmp_path / "out"))
    assert report["rows"] == {"in": 5, "train": 2, "eval": 2, "rejected": 1}
    assert report["leaked"] == {"Two": 1}
    assert report["rejected"] == {"prompt of train is also in Two": 1}
    assert sources(tmp_path / "out/train.jsonl") == ["healthbench"] * 2
    assert sources(tmp_path / "out/eval.jsonl") == ["healthbench_2"] * 2
    assert "1  Two" in shown(report)


def test_a_benchmark_of_which_nothing_is_trained_on_is_counted_as_none(tmp_path: Path) -> None:
    prepare(Job("healthbench", (file(tmp_path / "a.jsonl", *KNOWN),), tmp_path / "known"))
    held_out = str(tmp_path / "known/eval.jsonl")
    rows = file(tmp_path / "b.jsonl", "I limp.", split="train")
    other = file(tmp_path / "c.jsonl", "I sneeze.", split="test")
    job = Job("rar_medicine", (), tmp_path / "out")
    given = [
        replace(one, place=str(path))
        for one, path in (
            (rows, tmp_path / "rar_train.jsonl"),
            (other, tmp_path / "rar_test.jsonl"),
        )
    ]
    for one, text in zip(given, ("I limp.", "I sneeze."), strict=True):
        rubric = [{"title": "t", "description": "Essential Criteria: Is short.", "weight": 5}]
        line = {"question": text, "reference_answer": "a", "rubric": rubric}
        Path(one.place).write_text(json.dumps(line) + "\n")
    report = prepare(replace(job, inputs=tuple(given), keep_out=(held_out,)))
    assert report["leaked"] == {held_out: 0} and report["benchmark"] is None
