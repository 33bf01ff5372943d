"""What a run will ask its judge, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.load import load_config
from herl_megatron.plan.judge import JudgeWork, plan_judge
from herl_megatron.plan.machines import Assumptions

QWEN_7B = Path(__file__).parents[3] / "configs/qwen2.5_7b_if_8gpu.yaml"
# 8 rows a step, prompts of 1000 * 0.25 tokens, responses of 400 * 0.5.
KEYS = [
    "judge.base_url=http://a/v1", "judge.model=m", "judge.price_in=2", "judge.price_out=10",
    "train.prompts_per_step=4", "train.prompts_per_optimizer_step=4", "rollout.group_size=2",
    "train.steps=10", "train.epochs=null", "data.max_prompt_tokens=1000",
    "rollout.max_response_tokens=400",
    "hindsight.enabled=false", "train.eval_every=0",
]  # fmt: skip
ASSUMED = Assumptions(
    judge_fixed_tokens=50, judge_criterion_tokens_in=10, judge_criterion_tokens_out=5,
    judge_criteria=4,
)  # fmt: skip


def row(name: str, judged: int, **rubric: Any) -> dict[str, Any]:
    criteria = [{"id": f"j{n}", "kind": "judge", "description": "x"} for n in range(judged)]
    rule = {"id": "r", "kind": "rule", "check": "a_check_of_mine"}
    return {"id": name, "rubric": {"criteria": [*criteria, rule], **rubric}}


def data(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def planned(*more: str) -> Any:
    return plan_judge(load_config(QWEN_7B, [*KEYS, *more]), ASSUMED)


def test_without_a_judge_nothing_is_planned() -> None:
    assert plan_judge(load_config(QWEN_7B), Assumptions()) is None


def test_epochs_without_the_rows_here_leave_the_run_open(tmp_path: Path) -> None:
    """A cap of 20 calls with 8 in a step ends the second step, of however many there are."""
    held_out = data(tmp_path / "eval.jsonl", row("a", 1))
    given = ["train.steps=null", "train.epochs=2", f"data.eval={held_out}", "judge.max_calls=20"]
    found = planned(*given, "eval.samples_per_prompt=1", "data.train=nowhere.jsonl")
    assert (found.run, found.evaluations, found.paused_after) == (None, None, 2)
    assert (found.step.calls, found.evaluation.calls) == (8, 1)


def test_without_data_criteria_are_assumed_and_no_evaluation_counts() -> None:
    """A call: 50 + 250 + 200 + 4 * 10 = 540 tokens in, 4 * 5 out; 540 * 2 + 20 * 10 = 1280 per
    million. Eight of them a step, ten steps."""
    found = planned("data.train=nowhere.jsonl", "data.eval=nowhere.jsonl")
    step = found.step
    assert (step.calls, step.tokens_in, step.tokens_out) == (8, 8 * 540, 8 * 20)
    assert step.cost == pytest.approx(8 * 1280e-6)
    assert found.run.calls == 80 and found.run.cost == pytest.approx(80 * 1280e-6)
    assert found.evaluations == 0 and found.evaluation == JudgeWork()
    assert "data.train is not here: 4 criteria a response assumed" in found.counted


def test_samples_and_revisions_are_judged_too() -> None:
    absent = ("data.train=nowhere.jsonl", "data.eval=nowhere.jsonl")
    assert planned(*absent, "judge.samples=3").step.calls == 24
    revised = planned(*absent, "hindsight.enabled=true")
    assert revised.step.calls == 8 * 1.125


def test_criteria_are_counted_in_the_data(tmp_path: Path) -> None:
    """Rows of 3, 1 and no criteria for the judge, each in one call at most: 2 calls and 4 criteria
    in 3 rows. Evaluations before, after 4 and 8 of 10 steps, and after the last: 4."""
    train = data(tmp_path / "a.jsonl", row("a", 3), row("b", 1), row("c", 0))
    held_out = data(tmp_path / "b.jsonl", row("a", 2), row("b", 2))
    found = planned(f"data.train={train}", f"data.eval={held_out}", "train.eval_every=4",
                    "eval.samples_per_prompt=3")  # fmt: skip
    assert found.step.calls == pytest.approx(8 * 2 / 3)
    assert found.step.tokens_in == pytest.approx(8 * (2 / 3 * 500 + 4 / 3 * 10))
    assert found.step.tokens_out == pytest.approx(8 * 4 / 3 * 5)
    assert found.evaluation.calls == 6 and found.evaluation.tokens_out == 6 * 2 * 5
    assert found.evaluations == 4
    assert found.run.calls == pytest.approx(80 * 2 / 3 + 24)
    both = planned(f"data.train={train}", f"data.eval=[{held_out},{train}]")
    assert both.evaluation.calls == 2 + 2  # of 2 rows both, of 3 two
    assert "data.eval (5 rows, 1.6 criteria" in both.counted
    part = planned(f"data.train={train}", f"data.eval=[{held_out},nowhere.jsonl]")
    assert part.evaluation.calls == 0 and "data.eval is not here" in part.counted


def test_formats_with_a_call_per_criterion(tmp_path: Path) -> None:
    train = data(tmp_path / "a.jsonl", row("a", 3, aggregation="healthbench"))
    assert planned(f"data.train={train}").step.calls == 8 * 3


def test_a_cap_is_compared_with_the_steps(tmp_path: Path) -> None:
    """An evaluation of 2 calls first, then 8 a step: 50 are enough for 6 steps, 100 for all."""
    held_out = data(tmp_path / "b.jsonl", row("a", 2), row("b", 2))
    absent = ("data.train=nowhere.jsonl", f"data.eval={held_out}")
    assert planned(*absent, "judge.max_calls=50").paused_after == 6
    assert planned(*absent, "judge.max_calls=100").paused_after is None
    both = planned(*absent, "judge.max_calls=50", "judge.max_cost=0.03")
    assert both.paused_after == int((0.03 - both.evaluation.cost) / both.step.cost) == 2


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    train = data(tmp_path / "a.jsonl", row("a", 1), {"id": "b"})
    with pytest.raises(ValueError, match=r"a\.jsonl:2: no rubric with criteria"):
        planned(f"data.train={train}")


def test_the_command_prints_it() -> None:
    done = CliRunner().invoke(
        app,
        ["plan", str(QWEN_7B), *KEYS, "data.train=nowhere.jsonl", "judge.max_calls=20",
         "--gpu", "h100-80", "--rate", "judge_criteria=4"],
        env={"COLUMNS": "240"},
    )  # fmt: skip
    assert "asked of the judge" in done.output, done.output
    assert "judge.max_calls 20 pauses the run after about 2 of 10 steps" in done.output
