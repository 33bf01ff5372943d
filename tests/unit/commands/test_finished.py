"""A resumed run without anything left to do shows its table and starts nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.commands import train as command
from herl_megatron.commands.finished import finished_summary, headlines
from herl_megatron.config.loop_keys import LoopKeys, loop_keys
from herl_megatron.config.schema import Config, ModelConfig, RunConfig, TrainConfig
from herl_megatron.observability.summary import Headline
from herl_megatron.observability.timers import Timers
from herl_megatron.run.checkpoints import (
    DriverState,
    find_checkpoint,
    publish_checkpoint,
    start_checkpoint,
)
from herl_megatron.run.folder import RunFolder


def config(folder: Path, *, resume: bool = True, **train: Any) -> Config:
    return Config(
        run=RunConfig(dir=str(folder), name="run", resume=resume),
        model=ModelConfig(path="toy"),
        train=TrainConfig(**({"steps": 2} | train)),
    )


def keys(config: Config) -> LoopKeys:
    return loop_keys(config, purpose="train")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two steps that was saved, exported and finished."""
    with RunFolder.create(config(tmp_path, resume=False)) as folder:
        for step in range(2):
            folder.log(step, {"reward/mean": 0.5})
        folder.log(2, {"eval/reward": 0.75})
        folder.policy.mkdir()
        (folder.policy / "herl_export.json").write_text('{"files": []}')
        staging = start_checkpoint(folder.path, 2)
        (staging / "trainer" / ".metadata").write_bytes(b"names")
        driver = DriverState(
            2, folder.sync_metrics(), {}, None, config(tmp_path).model_dump(mode="json")
        )
        publish_checkpoint(staging, driver, keep=2, written={})
        folder.finish(before=Headline(0.25, 0.0), after=Headline(0.75, 0.5), timers=Timers())
        summary = json.loads((folder.path / "summary.json").read_text())
        (folder.path / "summary.json").write_text(json.dumps(summary | {"steps": 2}))
    return folder.path


def test_it_is_finished_only_with_all_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    options = config(tmp_path)
    found = find_checkpoint(options)
    assert found is not None
    assert finished_summary(run, found, keys(options)) is not None
    assert finished_summary(run, None, keys(options)) is None
    longer = config(tmp_path, steps=3)
    assert finished_summary(run, found, keys(longer)) is None
    assert (
        finished_summary(run, replace(found, other_evaluation=("data.eval",)), keys(options))
        is None
    )
    assert finished_summary(run, replace(found, damaged=(run,)), keys(options)) is None
    evaluated = replace(keys(options), evaluates=True)
    summary = json.loads((run / "summary.json").read_text())
    assert finished_summary(run, found, evaluated) == summary
    (run / "summary.json").write_text(json.dumps(summary | {"measured_on": "training rollouts"}))
    assert finished_summary(run, found, evaluated) is None
    (run / "policy" / "herl_export.json").unlink()
    assert finished_summary(run, found, keys(options)) is None
    assert finished_summary(run, found, keys(config(tmp_path, export=False))) is not None
    (run / "summary.json").write_text("{")
    assert finished_summary(run, found, keys(config(tmp_path, export=False))) is None


def test_the_command_prints_the_table_and_starts_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoPrompts:
        fingerprints: dict[str, str] = {}

    def start(*_: object) -> None:
        raise AssertionError("parts were started")

    monkeypatch.setattr(command, "load_inputs", lambda *_, **__: NoPrompts())
    monkeypatch.setattr(command, "open_recorded", start)
    before = {path: path.read_bytes() for path in run.rglob("*.json*") if path.is_file()}
    result = asyncio.run(command.train(config(tmp_path)))
    assert (result.policy, result.before, result.after) == (
        run / "policy", Headline(0.25, 0.0), Headline(0.75, 0.5),
    )  # fmt: skip
    assert "+0.500" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(AssertionError, match="parts were started"):
        asyncio.run(command.train(config(tmp_path, export=True, steps=3)))


def test_numbers_of_training_rollouts_are_no_evaluation() -> None:
    pair = {"before": 0.25, "after": 0.5}
    summary = {"measured_on": "training rollouts", "reward": pair, "all_satisfied": pair}
    assert headlines(summary) == (None, None)
    assert headlines(summary | {"measured_on": "held-out prompts"})[1] == Headline(0.5, 0.5)
