"""IFEval's four accuracies: shares of prompts and of instructions, of all prompts or of none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.bench.ifeval import LENGTHS, accuracies, accuracies_of, made_of

NUMBERS: dict[str, Any] = {
    "responses": 3, "unscored": 0, "notes": ["3 prompts, the whole set has 541"],
    "metrics": {"prompt_strict": 0.25, "instruction_strict": 0.5, "prompt_loose": 0.375,
                "instruction_loose": 0.75},
}  # fmt: skip


def test_four_accuracies() -> None:
    assert accuracies(NUMBERS) == {
        "prompt_level_strict": 0.25, "instruction_level_strict": 0.5,
        "prompt_level_loose": 0.375, "instruction_level_loose": 0.75,
    }  # fmt: skip


def test_no_share_of_fewer_prompts() -> None:
    with pytest.raises(ValueError, match="1 of 3 responses have no score"):
        accuracies(NUMBERS | {"unscored": 1})
    with pytest.raises(ValueError, match="no prompt_loose, instruction_loose: 3 prompts"):
        strict = dict(list(NUMBERS["metrics"].items())[:2])
        accuracies(NUMBERS | {"metrics": strict})


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
