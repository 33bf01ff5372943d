"""Whole runs on the real parts: Megatron-Core over gloo, vLLM on CPU, Ray."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig

from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_eval_and_export_agree(herl: Start, toy: Path, small: list[str]) -> None:
    """Two HeRL steps, trainer on TP 2; the exported policy evaluates to the same.

    `herl eval` loads the exported folder into a fresh engine of one process; equal rewards and
    lengths under equal seeds mean that the synced engine held exactly the exported weights.
    """
    run = herl(
        "train", "quickstart_cpu.yaml", *small,
        "megatron.tensor_parallel=2", "rollout.dtype=fp32", "parity.every=1",
        "rollout.temperature=0.8",
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
    # The engine computes what the trainer does; so do the rollouts that it trained on, at the
    # temperature they were drawn at.
    assert all(0 < row["parity/mean"] < 5e-6 and row["parity/max"] < 1e-4 for row in steps)
    assert all(row["train/mismatch_max"] == pytest.approx(1, abs=1e-4) for row in steps)
    assert all(row["train/mismatch_mean"] == pytest.approx(1, abs=5e-6) for row in steps)

    assert summary["hindsight"]["revisions"] > 0

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
    # Adam moves a weight by about the learning rate per optimizer step; `train/lr` is their mean.
    reach = sum(row["train/lr"] * 2 for row in steps)
    assert 0.5 * reach < moved < 1.1 * reach
    assert torch.isfinite(torch.stack([t.abs().max() for t in trained.values()])).all()


@pytest.fixture
def experts(toy: Path, tmp_path: Path) -> Path:
    """A two-layer Qwen3-MoE folder with the toy tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(toy / "model")
    shape = json.loads((toy / "model" / "config.json").read_text())
    config = Qwen3MoeConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=shape["max_position_embeddings"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    return tmp_path / "moe"


OWN = """
import torch


def of_rows(inputs, *, clip: float):
    ratio = inputs.row_mean(inputs.log_probs - inputs.old_log_probs).exp()
    a = inputs.advantages
    return -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)


def above_the_lowest(group, *, scale: float):
    low = min(reward for reward in group.rewards if reward is not None)
    return [0.0 if reward is None else scale * (reward - low) for reward in group.rewards]
"""


def test_experts_over_ranks(
    forked_herl: Start, experts: Path, small: list[str], tmp_path: Path
) -> None:
    """Two HeRL steps of a mixture of experts, trainer on EP 2 and engine on TP 2: both compute the
    same after every sync, which a missing, stale or exchanged expert would break. Loss and
    advantage are a user's, from a module where herl is started."""
    (tmp_path / "own_algorithms.py").write_text(OWN)
    run = forked_herl(
        "train", "quickstart_cpu.yaml", *small, f"model.path={experts}",
        "megatron.tensor_parallel=1", "megatron.data_parallel=2", "megatron.expert_parallel=2",
        "rollout.tensor_parallel=2", "rollout.dtype=fp32", "parity.every=1", "data.eval=''",
        "train.eval_every=0", "train.prompts_per_step=8", "optimizer.lr=1e-2",
        "optimizer.warmup_steps=0", "algorithm.loss=own_algorithms:of_rows",
        "algorithm.loss_options.clip=0.2", "algorithm.advantage=own_algorithms:above_the_lowest",
        "algorithm.advantage_options.scale=3",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    steps = [row for row in lines(run.folder / "metrics.jsonl") if "reward/mean" in row]
    assert [row["step"] for row in steps] == [0, 1]
    assert all(0 < row["parity/mean"] < 5e-6 and row["parity/max"] < 1e-4 for row in steps)
    # The second step's rollouts came from weights that the first step's optimizer had moved.
    assert all(row["train/mismatch_max"] == pytest.approx(1, abs=1e-4) for row in steps)
    assert all(row["train/grad_norm"] > 0 for row in steps)
    assert all(1 < row["train/expert_load_max"] <= 2 for row in steps)
    assert all("train/ratio_mean" in row and "train/clip_fraction" not in row for row in steps)
    trained_groups = 0
    for group in lines(run.folder / "rollouts" / "step_000001.jsonl"):
        drawn = [*group["rollouts"], *group["revisions"]]
        rows = [one["row"] for one in drawn if one["row"] and one["row"]["weight"]]
        low = min((row["reward"] for row in rows), default=0.0)
        for row in rows:
            assert row["advantage"] == pytest.approx(3 * (row["reward"] - low))
        trained_groups += bool(rows)
    assert trained_groups > 0

    trained = AutoModelForCausalLM.from_pretrained(run.folder / "policy").state_dict()
    for name, start in AutoModelForCausalLM.from_pretrained(experts).state_dict().items():
        if "experts" in name:
            moved = (trained[name] - start).abs().amax(dim=(1, 2))
            assert (moved > 0.01).all(), f"{name}: {moved}"  # every expert of both ranks


def hf_loss(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Mean negative log-likelihood of the answers' tokens, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    for row in rows:
        text = tokenizer.apply_chat_template(
            row["messages"][:-1], tokenize=False, add_generation_prompt=True
        )
        context = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = row["messages"][-1]["content"] + "<|im_end|>"
        response = tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([context + response])).logits[0]
        nll = torch.nn.functional.cross_entropy(
            logits[len(context) - 1 : -1], torch.tensor(response), reduction="sum"
        )
        total, count = total + nll.item(), count + len(response)
    return total / count


def test_sft_over_pipeline_stages(forked_herl: Start, toy: Path) -> None:
    """SFT on PP 3: first loss and the exported policy's loss are those of plain transformers."""
    run = forked_herl(
        "sft", "quickstart_sft_cpu.yaml", f"model.path={toy}/model",
        f"sft.data={toy}/sft.jsonl", "sft.steps=8", "sft.rows_per_step=16",
        "optimizer.warmup_steps=0",
        "megatron.tensor_parallel=1", "megatron.pipeline_parallel=3",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    losses = [row["sft/loss"] for row in lines(run.folder / "metrics.jsonl")]
    assert len(losses) == 8
    rows = lines(toy / "sft.jsonl")
    assert losses[0] == pytest.approx(hf_loss(toy / "model", rows[:16]), rel=1e-5)
    assert hf_loss(run.folder / "policy", rows[:16]) < losses[0] - 0.5
