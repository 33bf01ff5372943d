"""`herl reproduce --scale toy`: whole chains on the real parts, from nothing to the table.

The smallest, a base row, always; a row of each other kind with `tools/test.sh --full`.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.limits import FULL, HANG_S

pytestmark = pytest.mark.e2e


class Chains:
    """Runs `herl reproduce` in one folder, with a warm start of as many steps."""

    def __init__(self, folder: Path, *, warm_steps: int) -> None:
        self.folder, self.configs = folder, folder / "configs"
        shutil.copytree(ROOT / "configs", self.configs)
        warm = self.configs / "scale/toy_warm.yaml"
        text = warm.read_text(encoding="utf-8")
        assert "sft: {steps: 160," in text
        warm.write_text(text.replace("steps: 160,", f"steps: {warm_steps},"), encoding="utf-8")

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "herl_megatron.cli", *words],
            cwd=self.folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate(timeout=4 * HANG_S)
        return process.returncode, output

    def row(self, name: str, *words: str) -> str:
        code, output = self.run("reproduce", name, "--scale", "toy", "--dir", "runs/t", *words)
        assert code == 0, output
        return output

    def table(self) -> dict[str, dict[str, str]]:
        code, output = self.run("report", "--table", "runs/t", "--out", "table")
        assert code == 0, output
        with open(self.folder / "table/table.csv", encoding="utf-8") as file:
            return {f"{line['model']} {line['method']}": line for line in csv.DictReader(file)}


def test_a_base_row_from_nothing_to_the_table(tmp_path: Path) -> None:
    chains = Chains(tmp_path, warm_steps=2)
    output = chains.row("llama3.2_3b/base", "--eval", "eval.samples_per_prompt=1")
    assert "1/3 data_toy: herl tasks toy" in output and "3/3 eval_toy: herl eval" in output
    again = chains.row("llama3.2_3b/base", "--eval", "eval.samples_per_prompt=1")
    assert [line.split(":")[1][:12] for line in again.splitlines()] == [" done before"] * 3

    found = json.loads((tmp_path / "runs/t/llama3.2_3b/base/eval_toy/eval.json").read_text())
    (line,) = chains.table().values()
    assert float(line["measured"]) == pytest.approx(100 * found["all_satisfied"], abs=0.05)
    assert (line["prompts"], line["responses"]) == ("64", "64")
    assert line["paper"] == line["difference"] == ""


@pytest.mark.skipif(not FULL, reason="chains of commands: tools/test.sh --full")
def test_a_row_of_each_kind(tmp_path: Path) -> None:
    """One warm start and one set of samples for all; a row that is stopped goes on."""
    chains = Chains(tmp_path, warm_steps=100)
    chains.row("qwen3_4b/base")

    process = chains.start("reproduce", "qwen3_4b/if/herl", "--scale", "toy", "--dir", "runs/t")
    metrics = tmp_path / "runs/t/qwen3_4b/if/herl/train/metrics.jsonl"
    while process.poll() is None and not (
        metrics.is_file() and "train/loss" in metrics.read_text()
    ):
        time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=4 * HANG_S)
    assert process.returncode == 75, output
    assert "herl reproduce qwen3_4b/if/herl --scale toy --dir runs/t" in output
    chains.row("qwen3_4b/if/herl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(13))

    for method in ("rlvr", "sft", "dpo"):
        output = chains.row(f"qwen3_4b/if/{method}")
        assert "warm_start: done before" in output
    assert "samples: done before" in output

    table = chains.table()
    assert set(table) == {
        f"qwen3_4b {m}" for m in ("base", "if herl", "if rlvr", "if sft", "if dpo")
    }
    numbers = {name: float(line["measured"]) for name, line in table.items()}
    assert all(line["prompts"] == "64" for line in table.values())
    assert 0 < numbers["qwen3_4b base"] < numbers["qwen3_4b if sft"] <= 100  # its own best answers
