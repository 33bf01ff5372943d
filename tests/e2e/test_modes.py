"""Runs that train on tokens of older weights: partial rollouts, one step off."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.observability.metrics import is_measured
from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e
STEPS = 6


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in lines(run / "metrics.jsonl") if "reward/mean" in row]


def rollouts_of(run: Path, step: int) -> list[dict[str, Any]]:
    groups = lines(run / "rollouts" / f"step_{step:06d}.jsonl")
    return [r for group in groups for r in (*group["rollouts"], *group["revisions"])]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if not is_measured(key)} for row in rows]


def check_times(steps: list[dict[str, Any]]) -> None:
    """The phases of a step are its whole time."""
    phases = (
        "rollout", "rows", "train", "turns", "weight_sync", "checkpoint", "evaluate", "other"
    )  # fmt: skip
    for row in steps:
        total = sum(row.get(f"time/{phase}_s", 0.0) for phase in phases)
        assert row["time/total_s"] == pytest.approx(total, rel=1e-6)
        assert min(row["time/rollout_s"], row["time/train_s"], row["time/weight_sync_s"]) > 0


def of_many_lengths(model: Path, folder: Path) -> Path:
    """The model with every 32nd token among those that end a response. Random weights draw all
    tokens alike, so lengths are geometric with mean 32; with one end token all reach the limit."""
    shutil.copytree(model, folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    ends = {"eos_token_id": list(range(10, vocabulary, 32))}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


def test_partial_rollouts(forked_herl: Start, toy: Path, small: list[str], tmp_path: Path) -> None:
    """Too few slots for all responses, which are of many lengths: a step ends while some are under
    way, however late the driver hears of the groups that are complete.

    Gate and evaluation between two steps must find the engines free.
    """
    varied = of_many_lengths(toy / "model", tmp_path / "model")
    run = forked_herl(
        "train", "quickstart_cpu.yaml", *small, f"train.steps={STEPS}", "parity.every=1",
        "rollout.mode=partial", "rollout.oversample=1.0", "rollout.max_staleness=2",
        "algorithm.mismatch_weight=true", "rollout.max_num_seqs=10", "train.eval_every=3",
        "rollout.max_response_tokens=96", f"model.path={varied}",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    steps = steps_of(run.folder)
    assert len(steps) == STEPS
    check_times(steps)
    resumed = 0
    for step, row in enumerate(steps):
        assert row["rollout/staleness_max"] <= 2
        assert math.isfinite(row.get("train/grad_norm", 0.0))  # left out where nothing was learnt
        rollouts = rollouts_of(run.folder, step)
        assert len(lines(run.folder / "rollouts" / f"step_{step:06d}.jsonl")) == 4
        for rollout in rollouts:
            versions = [version for version, _ in rollout["segments"]]
            assert versions == sorted(set(versions)) and step - 2 <= versions[0]
            assert versions[-1] == rollout["weight_version"] <= step
            assert sum(tokens for _, tokens in rollout["segments"]) == rollout["tokens"]
        mixed = sum(len(rollout["segments"]) > 1 for rollout in rollouts)
        assert row["rollout/resumed"] == mixed
        resumed += mixed
    assert resumed > 0
    assert steps[-1]["rollout/carried_groups"] == 0


def test_one_step_off_and_its_resume(forked_herl: Start, small: list[str]) -> None:
    """Ends at step 4 and goes on to 6 as a run of 6 steps would have; all of it is reproducible."""
    settings = [
        *small, "rollout.mode=one_step_off", "algorithm.mismatch_weight=true",
        "train.eval_every=2", "checkpoint.every=2", "checkpoint.keep=9", "parity.every=1",
    ]  # fmt: skip
    whole = forked_herl("train", "quickstart_cpu.yaml", *settings, f"train.steps={STEPS}")
    code, output = whole.wait()
    assert code == 0, output
    assert whole.leftovers() == []
    steps = steps_of(whole.folder)
    check_times(steps)
    for step, row in enumerate(steps):
        expected = max(step - 1, 0)
        assert {r["weight_version"] for r in rollouts_of(whole.folder, step)} == {expected}
        assert row["rollout/staleness_mean"] == step - expected
        # What older weights drew shows in the ratio to the trainer's log-probs, and fresh does not.
        assert (abs(row["train/mismatch_max"] - 1) > 1e-3) == (step > 0)

    reference = {p.name: p.read_bytes() for p in (whole.folder / "rollouts").iterdir()}
    wanted = without_times(lines(whole.folder / "metrics.jsonl"))
    for newest in (5, 6):
        folder = whole.folder / "checkpoints" / f"step_{newest:06d}"
        if folder.exists():
            folder.rename(folder.with_name(f"put_away_{newest}"))
    resumed = forked_herl(
        "train", "quickstart_cpu.yaml", *settings, f"train.steps={STEPS}", "run.resume=true"
    )
    code, output = resumed.wait()
    assert code == 0, output
    assert "step_000004" in output and "resumed from" in output
    assert without_times(lines(whole.folder / "metrics.jsonl")) == wanted
    again = {p.name: p.read_bytes() for p in (whole.folder / "rollouts").iterdir()}
    assert again == reference
