"""Runs with rules and a judge in one rubric: an outage costs time and changes nothing."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run, Start, starting
from tests.fake_judge import fake_judge

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def mixed(toy: Path) -> list[str]:
    """Overrides of two HeRL steps; half of each rubric is a rule, half a statement for the judge.

    Random weights write random words of which some reach these counts, so rewards differ.
    """
    rows = []
    for index, topic in enumerate(("river", "garden", "city", "forest") * 2):
        rule = {
            "id": "short", "kind": "rule", "check": "ifeval/length_constraints:number_words",
            "params": {"relation": "less than", "num_words": 11 + index % 3},
        }  # fmt: skip
        long = {
            "id": "long",
            "kind": "judge",
            "description": f"The response has at least {8 + index % 3} words.",
        }
        too_long = long | {
            "id": "too_long",
            "description": "The response has at least 14 words.",
            "polarity": "negative",
        }
        rows.append(
            {
                "id": f"mixed-{index}",
                "messages": [{"role": "user", "content": f"Write about {index} {topic}."}],
                "rubric": {"criteria": [rule, long, too_long]},
            }
        )
    (toy / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return [
        f"model.path={toy}/model", f"data.train={toy}/mixed.jsonl", "data.eval=",
        "train.eval_every=0",
        "train.steps=2", "train.prompts_per_step=4", "train.prompts_per_optimizer_step=2",
        "train.export=false", "checkpoint.every=0", "parity.every=0",
        "megatron.tensor_parallel=1", "rollout.group_size=4", "rollout.max_response_tokens=16",
        "judge.model=fake", "judge.concurrency=3", "judge.failure_window=4", "judge.cache=",
        "judge.retry_wait_s=0.1",
    ]  # fmt: skip


@dataclass(frozen=True)
class Quiet:
    """The run whose judge always answered, and how often it was asked about each response."""

    run: Run
    calls: Counter[str]


@pytest.fixture(scope="module")
def quiet(
    mixed: list[str], fork_server: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Quiet:
    """What the others are compared with."""
    folder = tmp_path_factory.mktemp("quiet")
    with fake_judge() as judge, starting(folder, "quiet", fork_server) as start:
        run = start("train", "quickstart_cpu.yaml", *mixed, f"judge.base_url={judge.url}")
        code, output = run.wait()
        assert code == 0, output
        assert run.leftovers() == []
        return Quiet(run, judge.calls.copy())


def judged(run: Any) -> list[Any]:
    """Every rollout and revision of the run with its verdicts."""
    files = sorted((run.folder / "rollouts").glob("step_*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def metrics(run: Any) -> list[dict[str, float]]:
    rows = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "reward/mean" in row]


def test_outage_pauses_the_run_and_changes_nothing_that_it_learns(
    forked_herl: Start, mixed: list[str], quiet: Quiet
) -> None:
    """That a pause does not count against `rollout.timeout_s` is tested where it is counted."""
    down = {"until": 0.0}

    def outage(response: str, call: int) -> str:
        if shaky.calls.total() == 12:
            down["until"] = time.monotonic() + 3
        return "reset" if time.monotonic() < down["until"] else "ok"

    with fake_judge(outage) as shaky:
        run = forked_herl("train", "quickstart_cpu.yaml", *mixed, f"judge.base_url={shaky.url}")
        code, output = run.wait()
        assert code == 0, output
        assert run.leftovers() == []
        assert "scoring pauses since" in output and "the judge is back" in output
        again = shaky.calls.copy()
    asked = quiet.calls.copy()
    calm, outlived = metrics(quiet.run), metrics(run)
    assert sum(row["judge/paused_s"] for row in calm) == 0
    assert sum(row["judge/paused_s"] for row in outlived) > 2
    assert sum(row["judge/unjudged"] for row in calm + outlived) == 0

    # The same responses, verdicts, rewards and updates.
    assert judged(quiet.run) == judged(run)
    for before, after in zip(calm, outlived, strict=True):
        learned = [key for key in before if key.split("/")[0] in ("reward", "train", "hindsight")]
        assert len(learned) > 10
        assert {k: before[k] for k in learned} == {k: after[k] for k in learned}

    # Without a cache each distinct response of a prompt is asked about once (the probe aside);
    # the outage adds retries and loses none.
    assert asked.keys() == again.keys()
    del asked["Blue."]
    assert sum(row["judge/judged"] for row in calm) == asked.total()
    rewards = {rollout["reward"] for group in judged(run) for rollout in group["rollouts"]}
    assert len(rewards) > 1 and None not in rewards


def test_refused_key_ends_a_run_before_anything_starts(
    forked_herl: Start, mixed: list[str]
) -> None:
    with fake_judge(lambda response, call: "401") as judge:
        run = forked_herl("train", "quickstart_cpu.yaml", *mixed, f"judge.base_url={judge.url}")
        code, output = run.wait(60)
    assert code == 2 and "refuses access" in output and "judge.api_key_env" in output
    assert judge.calls.total() == 1 and "ray" not in output.lower()


def test_a_spent_budget_pauses_the_run_which_goes_on_as_if_it_had_not(
    forked_herl: Start, mixed: list[str], quiet: Quiet, tmp_path: Path
) -> None:
    """The first step alone takes 16 calls and more; what it took counts after the resume too."""
    with fake_judge() as judge:
        settings = [*mixed, f"judge.base_url={judge.url}", "run.name=capped"]

        def train(*more: str) -> tuple[int, str]:
            run = forked_herl("train", "quickstart_cpu.yaml", *settings, *more)
            code, output = run.wait()
            return code, " ".join(output.split())

        code, output = train("judge.max_calls=10")
        assert code == 3, output
        assert "1 steps are done and saved; judge.max_calls 10 is reached: " in output
        folder = tmp_path / "capped"
        assert [p.name for p in (folder / "checkpoints").glob("step_*")] == ["step_000001"]
        spent = json.loads((folder / "judge_spent.json").read_text())
        assert spent["calls"] == judge.calls.total() >= 17
        asked = judge.calls.total()
        code, output = train("judge.max_calls=10", "run.resume=true")
        assert code == 2 and "judge.max_calls 10 is reached" in output
        assert judge.calls.total() == asked
        code, output = train("judge.max_calls=1000", "run.resume=true")
        assert code == 0, output
        spent = json.loads((folder / "judge_spent.json").read_text())
        assert spent["calls"] == judge.calls.total()
    runs = []
    for done in (quiet.run.folder, folder):
        files = sorted((done / "rollouts").glob("step_*.jsonl"))
        runs.append([path.read_text() for path in files])
    assert len(runs[0]) == 2 and runs[0] == runs[1]
