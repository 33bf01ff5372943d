"""Whole runs on the real parts: Megatron-Core over gloo, vLLM on CPU, Ray."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.e2e


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_eval_and_export_agree(herl, toy: Path, small: list[str]) -> None:
    """Two HeRL steps on TP 2 with two engines; the exported policy evaluates to the same numbers.

    `herl eval` loads the exported folder into a fresh engine; equal rewards and lengths under equal
    seeds mean that the synced engines held exactly the exported weights.
    """
    run = herl(
        "train", "quickstart_cpu.yaml", *small,
        "megatron.tensor_parallel=2", "rollout.replicas=2", "rollout.dtype=fp32",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []

    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["steps"] == 2
    assert set(summary["reward"]) == {"before", "after"} == set(summary["all_satisfied"])

    steps = [row for row in lines(run.folder / "metrics.jsonl") if "reward/mean" in row]
    assert [row["step"] for row in steps] == [0, 1]
    assert all(math.isfinite(row["train/grad_norm"]) for row in steps)

    groups = lines(run.folder / "rollouts" / "step_000001.jsonl")
    assert len(groups) == 4
    for group in groups:
        assert len(group["rollouts"]) == 4
        for rollout in group["rollouts"]:
            verdicts = [item["verdict"] for item in rollout["verdicts"]]
            share = verdicts.count("followed") / len(verdicts)
            assert rollout["reward"] == pytest.approx(share)
            assert rollout["weight_version"] == 1

    again = herl(
        "eval", "quickstart_cpu.yaml", *small,
        f"model.path={run.folder}/policy", "run.name=eval", "rollout.dtype=fp32",
    )  # fmt: skip
    code, output = again.wait()
    assert code == 0, output
    result = json.loads((run.folder.parent / "eval" / "eval.json").read_text())
    after = [row for row in lines(run.folder / "metrics.jsonl") if "eval/reward" in row][-1]
    assert result["reward"] == after["eval/reward"]
    assert result["response_tokens"] == after["eval/response_tokens"]
    assert summary["reward"]["after"] == after["eval/reward"]

    trained = AutoModelForCausalLM.from_pretrained(run.folder / "policy").state_dict()
    start = AutoModelForCausalLM.from_pretrained(toy / "model").state_dict()
    assert trained.keys() == start.keys()
    moved = max((trained[name] - start[name]).abs().max().item() for name in start)
    # Adam moves a weight by at most about the learning rate in each of the 4 optimizer steps.
    assert 0 < moved < 4 * 1.5 * steps[0]["train/lr"] + 1e-6
    assert torch.isfinite(torch.stack([t.abs().max() for t in trained.values()])).all()


def test_sft_over_pipeline_stages_lowers_the_loss(herl, toy: Path, small: list[str]) -> None:
    """SFT on PP 2; the export's own loss on the first rows, by plain transformers, went down."""
    run = herl(
        "sft", "quickstart_sft_cpu.yaml", f"model.path={toy}/model",
        f"sft.data={toy}/sft.jsonl", "sft.steps=8", "sft.rows_per_step=16",
        "megatron.tensor_parallel=1", "megatron.pipeline_parallel=3",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    losses = [row["sft/loss"] for row in lines(run.folder / "metrics.jsonl")]
    assert len(losses) == 8
    assert losses[0] == pytest.approx(math.log(657), rel=0.1)  # random weights: log(vocabulary)
    assert losses[-1] < losses[0] - 0.5
