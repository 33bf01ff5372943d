"""The toy task through all commands that train, each from the policy of the one before.

With `tools/test.sh --full` alone: it takes minutes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Start
from tests.limits import FULL

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not FULL, reason="chains of commands: tools/test.sh --full"),
]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def evaluated(folder: Path) -> list[float]:
    """Held-out reward by evaluation."""
    return [row["eval/reward"] for row in lines(folder / "metrics.jsonl") if "eval/reward" in row]


def test_sft_herl_eval_pairs_dpo(herl: Start, toy: Path, tmp_path: Path) -> None:
    """What a command leaves is what the next one starts from: the same held-out samples, the same
    rewards, to the last digit."""

    def run(command: str, config: str, name: str, *settings: str) -> Path:
        started = herl(command, config, f"run.name={name}", *settings)
        code, output = started.wait(timeout_s=1200)
        assert code == 0, output
        assert started.leftovers() == []
        return tmp_path / name

    data = f"data.train={toy}/train.jsonl", f"data.eval={toy}/heldout.jsonl"
    sft = run(
        "sft", "quickstart_sft_cpu.yaml", "sft", f"model.path={toy}/model",
        f"sft.data={toy}/sft.jsonl", "sft.steps=120",
    )  # fmt: skip
    losses = [row["sft/loss"] for row in lines(sft / "metrics.jsonl") if "sft/loss" in row]
    assert losses[-1] < 0.5 * losses[0]

    trained = run(
        "train", "quickstart_cpu.yaml", "herl", f"model.path={sft}/policy", *data,
        "train.steps=12", "train.eval_every=0",
    )  # fmt: skip
    before, after = evaluated(trained)
    assert after > before

    again = run("eval", "quickstart_cpu.yaml", "eval", f"model.path={trained}/policy", *data)
    assert evaluated(again) == [after]

    pairs = tmp_path / "pairs.jsonl"
    subprocess.run(
        [sys.executable, "-m", "herl_megatron.cli", "pairs", trained, "--out", pairs],
        check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert len(lines(pairs)) > 10
    tuned = run(
        "dpo", "quickstart_cpu.yaml", "dpo", f"model.path={trained}/policy", f"dpo.data={pairs}",
        "dpo.steps=8", "dpo.pairs_per_step=8",
    )  # fmt: skip
    losses = [row["dpo/loss"] for row in lines(tuned / "metrics.jsonl") if "dpo/loss" in row]
    # The reference is the policy that it starts from; each step has pairs that it has not seen.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-9) and all(map(math.isfinite, losses))
    last = run("eval", "quickstart_cpu.yaml", "last", f"model.path={tuned}/policy", *data)
    (reward,) = evaluated(last)
    assert 0 < reward <= 1


def test_ifevals_accuracies_of_a_toy_model(toy: Path, tmp_path: Path) -> None:
    """Rows in the benchmark's own form; what a random model answers meets none or all of them."""
    rows: list[dict[str, Any]] = [
        {"key": key, "prompt": "Write about the river.", "instruction_id_list": [name],
         "kwargs": [{}]}
        for key, name in enumerate(("punctuation:no_comma", "startend:quotation"))
    ]  # fmt: skip
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bench/ifeval.py", "--input", tmp_path / "input.jsonl",
         "--model", toy / "model", "--out", tmp_path / "ifeval", "rollout.dtype=fp32",
         "rollout.replicas=1", "rollout.kv_cache_bytes=67108864", "data.max_prompt_tokens=64",
         "data.max_experience_tokens=128", "rollout.max_response_tokens=8"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "ifeval/accuracies.json").read_text())
    assert found["prompts"] == 2 and found["response_tokens"] <= 8
    shares = [found[f"{level}_{mode}"] for level in ("prompt_level", "instruction_level")
              for mode in ("strict", "loose")]  # fmt: skip
    assert all(share in (0, 0.5, 1) for share in shares)
    # The same responses, judged once more from the run's own file.
    drawn, out = tmp_path / "ifeval/drawn", tmp_path / "again.jsonl"
    again = subprocess.run(
        [sys.executable, "-m", "herl_megatron.cli", "score", drawn / "rollouts/eval.jsonl",
         "--out", out], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert again.returncode == 0
    totals = json.loads(out.with_name("again.jsonl.summary.json").read_text())
    numbers = json.loads((drawn / "eval.json").read_text())["benchmarks"]["ifeval"]
    assert totals["benchmarks"] == {"ifeval": numbers} and numbers["prompts"] == 2
    logged = lines(drawn / "metrics.jsonl")[0]
    assert logged["eval/benchmark/ifeval"] == numbers["metrics"]["prompt_strict"]
