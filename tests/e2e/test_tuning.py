"""`herl sft` and `herl dpo` that are killed, stopped and resumed leave the files of a run that
nobody touched; SFT evaluates on its way, with engines of its own."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Run, Start
from tests.e2e.test_resume import files, metrics
from tests.limits import HANG_S

pytestmark = pytest.mark.e2e


def once(run: Run, happened: Callable[[], bool], number: signal.Signals) -> None:
    """Send the signal to the driver as soon as that is true."""
    end = time.monotonic() + HANG_S
    while not happened() and run.process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    run.process.send_signal(number)


def steps_of(run: Path, name: str) -> list[int]:
    """Steps in the metrics, in their order."""
    return [row["step"] for row in metrics(run) if name in row]


def killed_in_the_middle(run: Run, first: str, name: str, steps: int) -> None:
    """Kill the driver once checkpoint `first` is published: steps behind it are done twice."""
    once(run, (run.folder / "checkpoints" / first).exists, signal.SIGKILL)
    run.wait()
    assert run.leftovers() == []
    assert 1 <= steps_of(run.folder, name)[-1] < steps - 1, "killed in the middle"


def finished(run: Run) -> str:
    code, output = run.wait()
    assert code == 0, output
    assert run.leftovers() == []
    return output


def same_but_for_time(one: Path, other: Path) -> None:
    """Metrics, policy and summary."""
    assert metrics(one) == metrics(other)
    assert files(one / "policy") == files(other / "policy")
    first, second = (json.loads((run / "summary.json").read_text()) for run in (one, other))
    assert first.pop("seconds") and second.pop("seconds")
    assert first == second


def test_dpo_learns_a_preference_and_goes_on_where_it_was_killed_and_stopped(
    herl: Start, toy: Path
) -> None:
    """Before the first step nothing is preferred: the loss is log 2. A reference that was taken of
    the resumed weights instead would make it that again."""
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
    steps = 40
    settings = [
        f"model.path={toy}/model", f"dpo.data={toy}/pairs.jsonl", f"dpo.steps={steps}",
        "dpo.pairs_per_step=3", "optimizer.lr=1e-3", "optimizer.warmup_steps=0",
        "optimizer.schedule=cosine", "megatron.tensor_parallel=1", "megatron.data_parallel=2",
        "checkpoint.every=5",
    ]  # fmt: skip
    whole = herl("dpo", "quickstart_cpu.yaml", *settings, "run.name=whole")
    finished(whole)
    reference = whole.folder.parent / "whole"
    lines = [json.loads(x) for x in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(steps))
    assert lines[0]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert lines[2]["dpo/loss"] < 0.6
    assert lines[-1]["dpo/accuracy"] == 1.0
    assert (reference / "policy" / "config.json").is_file()

    killed = herl("dpo", "quickstart_cpu.yaml", *settings)
    killed_in_the_middle(killed, "step_000005", "dpo/loss", steps)
    before = len(steps_of(killed.folder, "dpo/loss"))
    resumed = herl("dpo", "quickstart_cpu.yaml", *settings, "run.resume=true")
    once(resumed, lambda: len(steps_of_or_none(killed.folder)) > before, signal.SIGUSR1)
    code, output = resumed.wait()
    assert code == 75 and "resumed from" in output and "are done and saved" in output, output
    again = herl("dpo", "quickstart_cpu.yaml", *settings, "run.resume=true")
    assert "resumed from" in finished(again)
    same_but_for_time(killed.folder, reference)


def steps_of_or_none(run: Path) -> list[int]:
    """Of a file that is being written."""
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}")]


def test_sft_is_killed_resumed_and_evaluated_as_if_nothing_had_been(
    herl: Start, toy: Path, small: list[str]
) -> None:
    steps = 12
    settings = [
        *small, f"sft.data={toy}/sft.jsonl", f"sft.steps={steps}", "sft.rows_per_step=16",
        "sft.max_tokens=256", "sft.eval_every=4", "checkpoint.every=3", "optimizer.lr=4e-3",
        "optimizer.warmup_steps=2", "optimizer.schedule=cosine",
    ]  # fmt: skip
    whole = herl("sft", "quickstart_cpu.yaml", *settings, "run.name=whole")
    output = finished(whole)
    assert "on held-out prompts" in output
    reference = whole.folder.parent / "whole"
    assert steps_of(reference, "eval/reward") == [0, 4, 8, 12]
    assert steps_of(reference, "sft/loss") == list(range(steps))
    numbers: dict[str, Any] = json.loads((reference / "summary.json").read_text())
    first, last = (r["eval/reward"] for r in metrics(reference) if r["step"] in (0, steps)
                   and "eval/reward" in r)  # fmt: skip
    assert numbers["reward"] == {"before": first, "after": last}
    answered = [file.name for file in sorted((reference / "rollouts").iterdir())]
    assert answered == [f"eval_{step:06d}.jsonl" for step in (0, 4, 8, 12)]

    killed = herl("sft", "quickstart_cpu.yaml", *settings)
    killed_in_the_middle(killed, "step_000003", "sft/loss", steps)
    resumed = herl("sft", "quickstart_cpu.yaml", *settings, "run.resume=true")
    assert "resumed from" in finished(resumed)
    same_but_for_time(killed.folder, reference)
    assert files(killed.folder / "rollouts") == files(reference / "rollouts")
