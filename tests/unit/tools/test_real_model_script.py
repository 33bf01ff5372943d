"""tools/real_model.sh refuses what it does not know before it sets anything up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "seed", "said"),
    [
        (["--fast"], "0", "--fast is no option"),
        (["--task", "toy"], "0", "--task is 'toy', give stated or unstated"),
        (["--task"], "0", "--task is '', give stated or unstated"),
        (["--ifeval", "none.jsonl"], "0", "--ifeval is 'none.jsonl', which is no file"),
        (["--ifeval"], "0", "--ifeval is '', which is no file"),
        (["--short"], "one", "REAL_MODEL_SEED is 'one', give a whole number"),
    ],
)
def test_mistakes_cost_no_installation(
    arguments: list[str], seed: str, said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "tools/real_model.sh"), *arguments],
        env=os.environ | {"REAL_MODEL_SEED": seed, "HERL_VENV": str(tmp_path / "venv")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []
