"""Benchmarks that start Ray, engines, ranks or whole runs, at their smallest size.

They are run by hand for their numbers; here they only have to run, so that a change of what they
measure is noticed when it is made.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.data.toy_files import write_toy_task
from tests.bench_cases import WHOLE, run_bench

pytestmark = pytest.mark.e2e
TRL = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import json, sys
settings = json.loads(sys.argv[2])
assert sys.argv[1].endswith("tools/bench/_trl_side.py") and settings["group_size"] == 4
steps = settings["steps"]
print(json.dumps({{"start_s": 1.0, "train_s": 2.0 * steps, "tokens": [50] * steps,
                  "rewards": [0.5] * steps}}))
"""
"""A TRL that takes two seconds a step; begun by a shell: `#!` takes no path with a space."""


def results(found: dict[str, Any]) -> dict[str, str]:
    return {row["what"]: row["result"] for row in found["results"]}


@pytest.mark.parametrize("name", WHOLE)
def test_runs_at_its_smallest_size(name: str, tmp_path: Path) -> None:
    found = run_bench(name, WHOLE[name], tmp_path)
    shown = results(found)
    assert shown and all(shown.values())
    if name == "bench_orchestration":
        (step,) = found["raw"]["steps_s"]
        assert set(step) == {"stream and scoring", "rows", "rollout log", "train calls"}
        assert all(0 < seconds < 60 for seconds in step.values())
    elif name == "bench_checkpoint":
        assert shown["saved beside a training step, loaded back"] == "equal"
    elif name == "bench_conversion":
        assert shown["round trip: every tensor's bytes"] == "equal"
    elif name == "bench_gpu_step":
        assert found["raw"]["failed"] == {} and len(found["raw"]["HF"]) == 1
    elif name == "bench_startup":
        (start,) = found["raw"]["starts"]
        assert 0 < start["to_first_rollout_s"] < start["wall_s"]
        assert all(start["cpu_s"][kind] > 0.1 for kind in ("driver", "engine", "rank", "scorer"))
    elif name == "bench_step":
        assert shown["first samples as RLVR's, all else revisions"] == "True"
    elif name == "bench_weight_sync":
        assert all(value > 0 for value in numbers(found["raw"]))


def numbers(value: Any) -> list[float]:
    """Every time in what was measured."""
    return [seconds for name in ("sync", "pause") for seconds in value["times_s"][name]]


@pytest.fixture
def toy_task(tmp_path: Path) -> Path:
    write_toy_task(tmp_path / "toy", seed=0, train_prompts=16, heldout_prompts=2, sft_rows=4)
    return tmp_path / "toy"


def test_an_arm_is_trained_and_reported(toy_task: Path, tmp_path: Path) -> None:
    """One step of HeRL from the random model; held-out prompts before and after."""
    seed = tmp_path / "runs/seed0"
    (seed / "sft").mkdir(parents=True)
    (seed / "toy").symlink_to(toy_task)
    (seed / "sft/policy").symlink_to(toy_task / "model")
    arguments = (
        "--arms herl --seeds 0 --steps 1 --eval-every 1 --eval-samples 1 --runs {folder}/runs"
        " --set train.prompts_per_step=2 train.prompts_per_optimizer_step=2 rollout.group_size=4"
        " rollout.max_response_tokens=16 megatron.tensor_parallel=1"
    )
    found = run_bench("bench_arms", arguments, tmp_path)
    (curve,) = found["runs"]
    assert curve["steps"] == [0, 1] and curve["tokens"][0] == 0 < curve["tokens"][1]
    assert found["results"]["herl"]["reward at equal steps"] == {"0": curve["reward"][1]}
    assert (tmp_path / "runs/report").is_dir()


def test_against_a_trl_that_is_a_script(toy_task: Path, tmp_path: Path) -> None:
    """Our side is a real run of one step; the other says that it took two seconds."""
    trl = tmp_path / "python"
    trl.write_text(TRL.format(python=sys.executable))
    trl.chmod(trl.stat().st_mode | stat.S_IXUSR)
    arguments = (
        "--pairs 1 --steps 1 --prompts-per-step 2 --group-size 4 --max-response-tokens 8"
        " --trl-setups 1x1 --processes 1 --sides herl"
    )
    found = run_bench(
        "bench_trl", arguments, tmp_path, "--trl-python", str(trl), "--model",
        str(toy_task / "model"), "--prompts", str(toy_task / "train.jsonl"),
    )  # fmt: skip
    (ours,) = found["raw"]["sides"]["herl"]
    assert len(ours["tokens"]) == len(ours["rewards"]) == 1 and ours["tokens"][0] >= 8
    ratio = float(results(found)["TRL's time over herl's, equal steps"].split("x")[0])
    assert ratio == pytest.approx(2.0 / ours["steps_s"], rel=5e-3)
    assert json.dumps(found["raw"]["sides"]["trl"]) == (
        '[{"start_s": 1.0, "steps_s": 2.0, "tokens": [50], "rewards": [0.5]}]'
    )
