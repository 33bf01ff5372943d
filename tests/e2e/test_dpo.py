"""`herl dpo` on the real trainer: before the first step nothing is preferred, then it learns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e


def test_dpo_learns_a_preference_and_exports(forked_herl: Start, toy: Path) -> None:
    rows = [
        {
            "id": f"p{number}",
            "messages": [{"role": "user", "content": f"Write about the {topic}."}],
            "chosen": f"The {topic} is bright.",
            "rejected": f"the {topic} sleeps near the old {topic}, again.",
        }
        for number, topic in enumerate(("river", "garden", "city", "forest"))
    ]
    (toy / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = forked_herl(
        "dpo", "quickstart_cpu.yaml", f"model.path={toy}/model", f"dpo.data={toy}/pairs.jsonl",
        "dpo.steps=3", "dpo.pairs_per_step=4", "optimizer.lr=1e-3", "optimizer.warmup_steps=0",
        "megatron.tensor_parallel=1", "megatron.data_parallel=2",
    )  # fmt: skip
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert lines[2]["dpo/loss"] < 0.6
    assert lines[2]["dpo/accuracy"] == 1.0
    assert (run.folder / "policy" / "config.json").is_file()
