"""The loop of SFT and DPO over parts that stand in: what it leaves, and how it goes on and ends."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from herl_megatron.cluster.health import WorkerError
from herl_megatron.commands import tune as module
from herl_megatron.commands.results import TuneResult
from herl_megatron.config.loop_keys import loop_keys
from herl_megatron.config.schema import Config
from herl_megatron.errors import SavedForResume
from herl_megatron.observability.metrics import read_metrics
from herl_megatron.observability.summary import Headline, tuning_summary
from herl_megatron.run.checkpointer import Checkpointer
from herl_megatron.run.stop import StopRequest
from herl_megatron.run.tuning_inputs import TuningInputs
from herl_megatron.types import StepMetrics


class Trainer:
    """Its weights are the number of steps that they were trained."""

    def __init__(self) -> None:
        self.weights = 0

    async def save_checkpoint(self, folder: Path) -> dict[str, Any]:
        (folder / "part").write_text(str(self.weights))
        return {}

    async def load_checkpoint(self, folder: Path, *, version: int) -> None:
        self.weights = int((folder / "part").read_text())
        assert self.weights == version

    async def export(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "herl_export.json").write_text('{"files": ["weights"]}')
        (folder / "weights").write_text(str(self.weights))


class Task:
    """Step k has the loss 1 / (k + 1); `start` is what the weights were when it was asked."""

    def __init__(self, *, dies_at: int = -1, stops_at: int = -1) -> None:
        self.start: int | None = None
        self.stop = StopRequest()
        self._dies_at, self._stops_at = dies_at, stops_at

    async def of_start(self, trainer: Any, folder: Any) -> None:
        self.start = trainer.weights

    async def step(self, trainer: Any, step: int) -> dict[str, float]:
        assert trainer.weights == step
        if step == self._dies_at:
            raise WorkerError("trainer rank 0 died")
        if step == self._stops_at:
            self.stop.make()
        trainer.weights += 1
        return {"sft/loss": 1 / (step + 1), "sft/odd": math.nan}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


def run(tmp_path: Path, task: Task, *, resume: bool = False) -> TuneResult:
    """Five steps, saved after every second."""
    config = Config.model_validate(
        {
            "run": {"dir": str(tmp_path), "name": "run", "resume": resume},
            "model": {"path": "toy"},
            "sft": {"steps": 5},
            "checkpoint": {"every": 2},
        }
    )
    inputs = TuningInputs(None, {"sft.data": "5 rows"})
    return asyncio.run(module.tune(config, inputs, task, loop=loop_keys(config, purpose="sft")))


@pytest.fixture(autouse=True)
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Every trainer that was started."""
    started: list[Trainer] = []

    @asynccontextmanager
    async def opened(config: Any, inputs: Any, task: Any, *, loop: Any) -> AsyncIterator[Any]:
        started.append(trainer := Trainer())
        saves = Checkpointer(
            config, trainer, task, task.stop, purpose=loop.purpose,  # type: ignore[arg-type]
            fingerprints=inputs.fingerprints,
        )  # fmt: skip
        ray = SimpleNamespace(lost="", ranks_stay=True)
        try:
            yield SimpleNamespace(
                trainer=trainer, checkpoints=saves, engines=None, ray=ray, nodes=()
            )
        finally:
            await saves.close()

    monkeypatch.setattr(module, "open_tuning_parts", opened)
    return started


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [(line.step, line.values["sft/loss"]) for line in lines]


ALL = [(step, 1 / (step + 1)) for step in range(5)]


def test_a_run_leaves_metrics_policy_and_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path, task := Task())
    assert task.start == 0 and losses(result.folder) == ALL
    assert (result.first, result.last) == ({"loss": 1.0}, {"loss": 0.2})
    assert (result.before, result.after) == (None, None)
    assert (result.policy / "weights").read_text() == "5"
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["steps"] == 5 and summary["measured_on"] is None
    assert {"start", "train", "export", "checkpoint"} <= summary["seconds"].keys()
    assert "-0.8000" in capsys.readouterr().out
    saved = sorted(path.name for path in (result.folder / "checkpoints").glob("step_*"))
    assert saved == ["step_000004", "step_000005"]


def test_a_run_whose_trainer_dies_goes_on_behind_its_last_checkpoint(
    tmp_path: Path, starts: list[Trainer]
) -> None:
    """Step 2 is done twice and stands once; `of_start` sees the weights before they are loaded; the
    policy that was rescued of step 3 is not the result."""
    with pytest.raises(WorkerError):
        run(tmp_path, Task(dies_at=3))
    folder = tmp_path / "run"
    assert losses(folder) == ALL[:3] and (folder / "policy" / "weights").read_text() == "3"
    assert "resume it with: herl sft" in (folder / "run.log").read_text()
    result = run(tmp_path, task := Task(), resume=True)
    assert task.start == 0 and losses(folder) == ALL
    assert (result.first, result.last) == ({"loss": 1.0}, {"loss": 0.2})
    assert (folder / "policy" / "weights").read_text() == "5"
    again = run(tmp_path, Task(), resume=True)
    assert again == result and len(starts) == 2  # nothing was left, and nothing was started


def test_a_run_that_is_asked_to_stop_is_saved_behind_the_step(tmp_path: Path) -> None:
    with pytest.raises(SavedForResume, match="1 steps are done and saved"):
        run(tmp_path, Task(stops_at=0))
    assert not (tmp_path / "run" / "policy").exists()
    assert losses(run(tmp_path, Task(), resume=True).folder) == ALL


def test_without_anything_to_go_on_from_it_begins(tmp_path: Path) -> None:
    assert losses(run(tmp_path, Task(), resume=True).folder) == ALL
    with pytest.raises(ValueError, match="run.overwrite=true"):
        run(tmp_path, Task())


def test_a_summary_has_the_steps_numbers_and_the_held_out_ones_apart() -> None:
    history = [
        StepMetrics(0, {"eval/reward": 0.25, "rollout/engine_restarts": 1.0}),
        StepMetrics(0, {"dpo/loss": 0.5, "dpo/margin": 0.0}),
        StepMetrics(1, {"dpo/loss": 0.25, "dpo/margin": math.inf}),
        StepMetrics(2, {"eval/reward": 0.5, "rollout/engine_restarts": 2.0}),
    ]
    before, after = Headline(0.25, 0.0), Headline(0.5, 0.125)
    summary = tuning_summary(history, "dpo", before=before, after=after, seconds={"train": 1.23456})
    assert summary == {
        "command": "dpo",
        "steps": 2,
        "first": {"loss": 0.5, "margin": 0.0},
        "last": {"loss": 0.25},
        "reward": {"before": 0.25, "after": 0.5},
        "all_satisfied": {"before": 0.0, "after": 0.125},
        "measured_on": "held-out prompts",
        "engine_restarts": 3,
        "seconds": {"train": 1.235},
    }
