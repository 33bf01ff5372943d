"""README.md's example with data and a check of one's own, pasted and run as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S
from tests.test_readme import ROOT, own_data

pytestmark = pytest.mark.e2e


def test_the_example_trains(toy: Path, tmp_path: Path) -> None:
    words = own_data(tmp_path)
    (tmp_path / "runs/quickstart/sft").mkdir(parents=True)
    (tmp_path / "runs/quickstart/sft/policy").symlink_to(toy / "model")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    program = [sys.executable, "-m", "herl_megatron.cli"]
    assert words[0] == "herl"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/_supervise.py"), *program, *words[1:]],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs/quickstart/haiku"
    groups = [json.loads(line) for line in (run / "rollouts/step_000001.jsonl").open()]
    (rollouts,) = [group["rollouts"] for group in groups]
    assert len(rollouts) == 8
    for rollout in rollouts:  # two thirds for three lines, one for no comma
        text = rollout["text"]
        lines, comma = len(text.strip().splitlines()) == 3, "," not in text
        assert rollout["reward"] == pytest.approx((2 * lines + comma) / 3)
