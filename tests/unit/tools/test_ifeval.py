"""IFEval's four accuracies: shares of prompts and of instructions, of all prompts or of none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.commands.score.job import ScoreJob, run_score
from herl_megatron.rubrics.checks.local import Mode
from tools.bench.ifeval import LENGTHS, accuracies, accuracies_of, answered, made_of

COMMA = {"id": "comma", "kind": "rule", "check": "ifeval/punctuation:no_comma"}
LOWER = {"id": "lower", "kind": "rule", "check": "ifeval/change_case:english_lowercase"}


def rows_and_answers(folder: Path) -> tuple[Path, Path]:
    """Two prompts; the first answer follows one of its two instructions, and both loosely (without
    its first line); the second follows its only one."""
    rows: list[dict[str, Any]] = [
        {"id": "a", "messages": [{"role": "user", "content": "x"}],
         "rubric": {"criteria": [COMMA, LOWER]}},
        {"id": "b", "messages": [{"role": "user", "content": "y"}],
         "rubric": {"criteria": [COMMA]}},
    ]  # fmt: skip
    texts = {"a": "sure, here it is\nthe whole answer in lower case", "b": "None at all."}
    groups = [{"prompt_id": name, "rollouts": [{"text": text}]} for name, text in texts.items()]
    content: tuple[list[dict[str, Any]], ...] = (rows, groups)
    files = folder / "rows.jsonl", folder / "eval.jsonl"
    for file, lines in zip(files, content, strict=True):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def test_four_accuracies(tmp_path: Path) -> None:
    filled = tmp_path / "answered.jsonl"
    filled.write_text(
        "".join(json.dumps(row) + "\n" for row in answered(*rows_and_answers(tmp_path)))
    )
    summaries: dict[str, Any] = {}
    modes: tuple[Mode, Mode] = ("strict", "loose")
    for mode in modes:
        job = ScoreJob(filled, tmp_path / f"{mode}.jsonl", mode)
        asyncio.run(run_score(job))
        summaries[mode] = json.loads(job.summary.read_text())
    assert accuracies(summaries) == {
        "prompt_level_strict": 1 / 2, "instruction_level_strict": 2 / 3,
        "prompt_level_loose": 1.0, "instruction_level_loose": 1.0,
    }  # fmt: skip


def test_no_share_of_fewer_prompts(tmp_path: Path) -> None:
    rows, rollouts = rows_and_answers(tmp_path)
    rollouts.write_text(rollouts.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="no response to b"):
        list(answered(rows, rollouts))
    unscored = {"unscored": 1, "responses": 3, "unscored_by_reason": {"timeout": 1}}
    with pytest.raises(ValueError, match="1 of 3 responses have no strict score"):
        accuracies({"strict": unscored})


def test_accuracies_of_something_else_are_not_shown_again(tmp_path: Path) -> None:
    """A policy that was trained anew lies where the one before it lay."""
    model, source, out = tmp_path / "model", tmp_path / "input_data.jsonl", tmp_path / "out"
    for folder in (model, out):
        folder.mkdir()
    (model / "model.safetensors").write_bytes(b"first")
    source.write_text("{}\n")
    config = Path("some.yaml")
    made = made_of(model, source, config, LENGTHS) | {"prompts": 541}
    (out / "accuracies.json").write_text(json.dumps(made))
    assert accuracies_of(model, out, source, config=config) == made
    with pytest.raises(ValueError, match="made with another settings; give another folder"):
        accuracies_of(model, out, source, config=config, settings=["rollout.replicas=2"])
    (model / "model.safetensors").write_bytes(b"second")
    with pytest.raises(ValueError, match="made with another model_sha256;"):
        accuracies_of(model, out, source, config=config)
