"""Half of the loop alone gives what it gave in the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e


def logged(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [row for row in rows if "reward/mean" in row]


def test_rollouts_and_learning_alone_are_those_of_the_loop(
    forked_herl: Start, small: list[str]
) -> None:
    """One step of HeRL that keeps its groups: the rollouts alone write the same lines, learning
    alone gives the same loss and the same policy bit for bit, though neither has the other half."""
    common = [*small, "data.eval=", "train.eval_every=0", "train.steps=1", "rollout.dtype=fp32"]
    whole = forked_herl("train", "quickstart_cpu.yaml", *common, "train.keep_groups=true")
    code, output = whole.wait()
    assert code == 0, output
    runs = whole.folder.parent
    drawn = forked_herl(
        "train", "quickstart_cpu.yaml", *common, "run.name=drawn", "train.only=rollouts",
        "train.keep_groups=true",
    )  # fmt: skip
    code, output = drawn.wait()
    assert code == 0, output
    learnt = forked_herl(
        "train", "quickstart_cpu.yaml", *common, "run.name=learnt", "train.only=learning",
        f"train.groups_from={runs}/drawn",
    )  # fmt: skip
    code, output = learnt.wait()
    assert code == 0, output

    kept = "rollouts/step_000000.groups.gz"
    assert (runs / "run" / kept).is_file() and not (runs / "learnt/rollouts").exists()
    line = "rollouts/step_000000.jsonl"
    assert (runs / "drawn" / line).read_bytes() == (runs / "run" / line).read_bytes()
    assert not (runs / "drawn/policy").exists() and not (runs / "learnt/checkpoints").exists()
    (loop,), (alone,) = logged(runs / "run"), logged(runs / "learnt")
    numbers = [n for n in loop if n.startswith(("train/", "reward/", "hindsight/"))]
    assert {n: loop[n] for n in numbers} == {n: alone[n] for n in numbers if n in alone} | {
        n: loop[n] for n in numbers if n not in alone
    }
    assert {"train/loss", "train/grad_norm", "reward/mean"} <= set(numbers) & set(alone)
    first, second = (
        AutoModelForCausalLM.from_pretrained(runs / name / "policy").state_dict()
        for name in ("run", "learnt")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
