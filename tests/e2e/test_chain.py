"""The toy task through all commands that train, each from the policy of the one before.

With `tools/test.sh --full` alone: it takes minutes.
"""

from __future__ import annotations

import json
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
    preferred = [row["dpo/accuracy"] for row in lines(tuned / "metrics.jsonl")]
    assert preferred[-1] > 0.5
    last = run("eval", "quickstart_cpu.yaml", "last", f"model.path={tuned}/policy", *data)
    (reward,) = evaluated(last)
    assert 0 < reward <= 1
