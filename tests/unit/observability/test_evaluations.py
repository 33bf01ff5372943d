"""Held-out numbers from before a change of the evaluation are compared with nothing after it."""

from __future__ import annotations

import json
from pathlib import Path

from herl_megatron.config.schema import Config, ModelConfig, RunConfig
from herl_megatron.observability.evaluations import EVALUATION_CHANGED, comparable
from herl_megatron.observability.metrics import read_metrics
from herl_megatron.report.runs import read_run
from herl_megatron.report.tables import before_after
from herl_megatron.run.checkpoints import Checkpoint
from herl_megatron.run.folder import RunFolder
from herl_megatron.types import StepMetrics
from tests.unit.run.test_checkpoints import save


def test_only_what_follows_the_last_change_compares() -> None:
    history = [
        StepMetrics(0, {"eval/reward": 0.1, "x": 1.0}),
        StepMetrics(1, {EVALUATION_CHANGED: 1.0}),
        StepMetrics(1, {"eval/reward": 0.2}),
        StepMetrics(2, {EVALUATION_CHANGED: 1.0, "y": 2.0}),
        StepMetrics(2, {"eval/reward": 0.3}),
    ]
    seen = [dict(item.values) for item in comparable(history)]
    assert seen == [{"x": 1.0}, {}, {}, {EVALUATION_CHANGED: 1.0, "y": 2.0}, {"eval/reward": 0.3}]
    assert comparable(history[:1]) == history[:1]


def test_a_resume_under_another_evaluation_marks_where(tmp_path: Path) -> None:
    def config(**run: bool) -> Config:
        return Config(
            run=RunConfig(dir=str(tmp_path), name="run", **run), model=ModelConfig(path="toy")
        )

    with RunFolder.create(config()) as folder:
        folder.log(0, {"eval/reward": 0.635, "eval/check/a": 0.5})
        folder.log(0, {"reward/mean": 0.4})
        save(folder.path, 1, metrics_bytes=folder.sync_metrics())
    for changed in ((), ("eval.temperature",)):
        with RunFolder.create(config(resume=True)) as folder:
            assert folder.checkpoint is not None
            driver = folder.checkpoint.driver
            folder.checkpoint = Checkpoint(folder.checkpoint.folder, driver, changed)
            folder.take_back()
            folder.log(1, {"reward/mean": 0.5})
            folder.log(2, {"eval/reward": 0.5, "eval/check/a": 0.25})
            folder.log(3, {"eval/reward": 0.578, "eval/check/a": 0.75})
        lines = [json.loads(t) for t in (folder.path / "metrics.jsonl").read_text().splitlines()]
        marks = [line for line in lines if EVALUATION_CHANGED in line]
        assert marks == ([{"step": 1, EVALUATION_CHANGED: 1.0}] if changed else [])
        run = read_run(folder.path)
        shown = before_after(run)
        assert shown is not None
        assert shown.reward == ((0.5, 0.578) if changed else (0.635, 0.578))
        assert EVALUATION_CHANGED not in run.metrics
        assert len(read_metrics(folder.path / "metrics.jsonl")) == len(lines)
