"""HeRL steps on real IFEval prompts, from the source's rows to an exported policy."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.rubrics.checks import registry
from herl_megatron.types import Verdict
from tests.e2e.conftest import ROOT, Start
from tests.unit.rubrics import conftest as nltk_data  # sets NLTK_DATA

pytestmark = pytest.mark.e2e

assert nltk_data
LIMIT_TOKENS = 256


@pytest.fixture
def model(toy: Path, tmp_path: Path) -> Path:
    """The toy tokenizer, which falls back to bytes, and random weights with room for real text."""
    folder = tmp_path / "model"
    config = AutoConfig.from_pretrained(toy / "model", max_position_embeddings=2048)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy / "model").save_pretrained(folder)
    return folder


@pytest.fixture
def prepared(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """train.jsonl and eval.jsonl of IFEval, made by the tool."""
    folder = os.environ.get("HERL_DATA_DIR")
    if not folder:
        pytest.skip("HERL_DATA_DIR is not set: no real prompts")
    monkeypatch.setenv("NLTK_DATA", str(Path(folder) / "nltk_data"))
    out = tmp_path / "ifeval"
    subprocess.run(
        [sys.executable, ROOT / "tools/prepare_data.py", "ifeval",
         "--input", Path(folder) / "ifeval_qwen25_7b.jsonl.gz", "--out", out,
         "--eval-share", "0.02", "--tokenizer", model,
         "--max-prompt-tokens", str(LIMIT_TOKENS), "--drop-long"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return out


def test_three_steps_on_ifeval(forked_herl: Start, model: Path, prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_text())
    rows = report["rows"]
    assert rows["train"] + rows["eval"] + rows["rejected"] == rows["in"] == 541
    assert set(report["rejected"]) == {"prompt too long"} and rows["train"] > 100
    run = forked_herl(
        "train", "quickstart_cpu.yaml",
        f"model.path={model}", f"data.train={prepared}/train.jsonl",
        f"data.eval={prepared}/eval.jsonl",
        f"data.max_prompt_tokens={LIMIT_TOKENS}", "data.max_experience_tokens=1536",
        "rollout.max_response_tokens=32", "rollout.group_size=8",
        "train.steps=3", "train.prompts_per_step=8", "train.prompts_per_optimizer_step=4",
        "train.eval_every=3", "eval.samples_per_prompt=1", "parity.every=3",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if "reward/mean" in row]
    assert [row["step"] for row in steps] == [0, 1, 2]
    # A step in which no group has a spread has no gradient; noise meets few real criteria.
    norms = [row["train/grad_norm"] for row in steps if "train/grad_norm" in row]
    assert norms and all(math.isfinite(norm) and norm > 0 for norm in norms)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["hindsight"]["revisions"] > 0
    # Every reward is what the prepared rubric says of the text, and every prompt a prepared one.
    prompts = {prompt.id: prompt for prompt in load_prompts(str(prepared / "train.jsonl"))}
    seen = set()
    for step in range(3):
        for line in (run.folder / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines():
            group = json.loads(line)
            prompt = prompts[group["prompt_id"]]
            seen.add(prompt.id)
            for response in [*group["rollouts"], *group.get("revisions", ())]:
                results = [registry.run_check(c, response["text"]) for c in prompt.rubric.criteria]
                judged = [r.verdict for r in results if r.verdict is not Verdict.UNVERIFIABLE]
                share = judged.count(Verdict.FOLLOWED) / len(judged)
                assert response["reward"] == pytest.approx(share)
    assert len(seen) == 24
