"""`herl improve` on the real engine, stopped half-way and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from tests.e2e.conftest import Start

pytestmark = pytest.mark.e2e
CONFIG = Path(__file__).parents[2] / "configs/quickstart_cpu.yaml"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_improve_adds_up_and_goes_on_where_it_was_stopped(
    forked_herl: Start, small: list[str]
) -> None:
    """The numbers are those of the written trajectories, counted here; after losing some of them,
    and half a line, the same command with `run.resume` ends with the same numbers and files."""
    arguments = ("improve", "quickstart_cpu.yaml", *small, "improve.rounds=2")
    run = forked_herl(*arguments)
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    assert "best of 3, equal samples" in output

    result = json.loads((run.folder / "improve.json").read_text())
    trajectories = lines(run.folder / "trajectories.jsonl")
    assert len(trajectories) == 16 == result["prompts"] * result["trajectories_per_prompt"]
    attempts = [a for t in trajectories for a in t["attempts"]]
    assert {a["round"] for a in attempts} == {0, 1, 2}
    for number, values in enumerate(result["rounds"]):
        best = [
            max(a["score"]["reward"] for a in t["attempts"] if a["round"] <= number)
            for t in trajectories
        ]
        assert values["outcome"]["reward"] == pytest.approx(sum(best) / 16)
        assert values["outcome"]["tokens"] == sum(
            a["tokens"] for a in attempts if a["round"] <= number
        )
        assert values["same_samples"]["n"] == number + 1
    assert result["rounds"][2]["revisions"] > 0
    assert result["rounds"][0]["outcome"] == result["rounds"][0]["same_samples"]["outcome"]
    tokens = result["rounds"][2]["outcome"]["tokens"]
    assert result["rounds"][2]["same_tokens"]["outcome"]["tokens"] >= tokens

    kept = (run.folder / "trajectories.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "trajectories.jsonl").write_text("".join(kept[:9]) + kept[9][:40])
    (run.folder / "improve.json").unlink()
    again = forked_herl(*arguments, "run.resume=true")
    code, output = again.wait()
    assert code == 0, output
    assert json.loads((run.folder / "improve.json").read_text()) == result
    assert sorted(lines(run.folder / "trajectories.jsonl"), key=str) == sorted(
        trajectories, key=str
    )

    other = [f"run.dir={run.folder.parent}", "run.name=run", "improve.temperature=0.4"]
    command = ["improve", str(CONFIG), *small, "improve.rounds=2", *other, "run.resume=true"]
    refused = CliRunner().invoke(app, command)  # here: it ends before a process is started
    assert refused.exit_code == 2
    assert "improve.temperature is 0.4, it was 0.3" in " ".join(refused.output.split())
