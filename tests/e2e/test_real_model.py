"""The real SmolLM2-135M-Instruct: logits of the conversion, two small HeRL steps, the export.

HERL_REAL_MODEL names the folder that tools/fetch_smollm2.py makes; without it these are skipped.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file

from herl_megatron.commands.tasks import main as write_rows
from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.data.smollm2 import answer
from herl_megatron.rubrics.checks.registry import run_check
from herl_megatron.types import Verdict
from tests.e2e.conftest import ROOT, Start
from tests.serve import vllm_serve

pytestmark = pytest.mark.e2e


@pytest.fixture
def weights() -> Path:
    folder = os.environ.get("HERL_REAL_MODEL")
    if not folder:
        pytest.skip("HERL_REAL_MODEL is not set: no folder made by tools/fetch_smollm2.py")
    return Path(folder).resolve()


def tool(*arguments: str | Path) -> str:
    """What a `herl` command prints; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "herl_megatron.cli", *map(str, arguments)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-3000:]
    return done.stdout


def test_it_says_what_a_real_model_says(weights: Path) -> None:
    assert "Paris" in answer(weights, "What is the capital of France?")


def test_conversion_keeps_every_bit_and_the_logits(weights: Path, tmp_path: Path) -> None:
    megatron, back = tmp_path / "megatron", tmp_path / "hf"
    tool("convert", "to-megatron", "--hf", weights, "--out", megatron, "--pp", "2")
    tool("verify", "--hf", weights, "--megatron", megatron, "--logits")
    tool("convert", "to-hf", "--megatron", megatron, "--out", back)
    ours: dict[str, torch.Tensor] = {}
    for file in back.glob("*.safetensors"):
        ours |= load_file(file)
    (theirs,) = weights.glob("*.safetensors")
    for name, tensor in load_file(theirs).items():
        assert torch.equal(ours[name], tensor), name


def test_two_steps_and_the_exported_policy(herl: Start, weights: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    assert write_rows(
        ["unstated", "--train", "8", "--heldout", "4", "--heldout-topics", "4", "--out", str(rows)]
    ) == 0  # fmt: skip
    run = herl(
        "train", "smollm2_135m_unstated_cpu.yaml", f"model.path={weights}",
        f"data.train={rows}/train.jsonl", f"data.eval={rows}/heldout.jsonl",
        "train.steps=2", "train.prompts_per_step=2", "train.prompts_per_optimizer_step=2",
        "rollout.group_size=4", "train.eval_every=0", "eval.samples_per_prompt=1",
        "checkpoint.every=0",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["hindsight"]["revisions"] > 0
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    norms = [row["train/grad_norm"] for row in metrics if "train/grad_norm" in row]
    assert norms and all(math.isfinite(norm) and norm > 0 for norm in norms)
    prompts = {prompt.id: prompt for prompt in load_prompts(f"{rows}/train.jsonl")}
    for line in (run.folder / "rollouts/step_000000.jsonl").read_text().splitlines():
        group = json.loads(line)
        criteria = prompts[group["prompt_id"]].rubric.criteria
        for response in [*group["rollouts"], *group["revisions"]]:
            met = [run_check(c, response["text"]).verdict is Verdict.FOLLOWED for c in criteria]
            assert response["reward"] == pytest.approx(sum(met) / 3)
        for revision in group["revisions"]:
            assert "Draft:" not in revision["experience"]
    # The policy still speaks, ends its turn, and is no copy of what it started from.
    policy = run.folder / "policy"
    said = answer(policy, "What is the capital of France?", max_tokens=64)
    assert said and "<|im_end|>" not in said
    trained: dict[str, torch.Tensor] = {}
    for file in policy.glob("*.safetensors"):
        trained |= load_file(file)
    (start,) = weights.glob("*.safetensors")
    before = load_file(start)
    assert set(trained) == set(before)
    moved = max(float((trained[n].float() - before[n].float()).abs().max()) for n in before)
    assert 0 < moved < 0.1
    check_served(policy, log=tmp_path / "serve.log")


def check_served(policy: Path, *, log: Path) -> None:
    """`vllm serve POLICY`, asked without a word about where to stop, stops at the turn's end. So
    small a model may run in circles until the limit, but never into the next turn."""
    options = ("--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "4",
               "--kv-cache-memory-bytes", "134217728")  # fmt: skip
    questions = ("What is the capital of France?", "Say hello.", "Name a colour.", "What is 2 + 2?")
    ends = []
    with vllm_serve(policy, *options, name="policy", log=log) as server:
        with openai.OpenAI(base_url=server.url, api_key="none") as client:
            for question in questions:
                choice = client.chat.completions.create(
                    model="policy", max_tokens=256, temperature=0,
                    messages=[{"role": "user", "content": question}],
                    extra_body={"skip_special_tokens": False},
                ).choices[0]  # fmt: skip
                ends.append(choice.finish_reason)
                text = choice.message.content or ""
                assert text.strip() and "<|im_start|>" not in text, text
    assert "stop" in ends, ends
