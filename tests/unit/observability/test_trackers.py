"""Trackers get a run's numbers and texts, and none of them can stop it."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from herl_megatron.config.schema import Config, ModelConfig, RunConfig, TrackingConfig
from herl_megatron.observability.trackers import fan_out
from herl_megatron.observability.trackers.board import TensorBoard
from herl_megatron.observability.trackers.fan_out import Trackers
from herl_megatron.observability.trackers.ids import read_ids, write_id
from herl_megatron.observability.trackers.ml_flow import _metric_name
from herl_megatron.observability.trackers.protocol import SamplesOf, TextSample, TrackedRun
from herl_megatron.run.folder import RunFolder
from herl_megatron.types import StepMetrics

SAMPLE = TextSample("user: hi\n# no title", "a\nb", 0.5, ("c1", "c2"), "better", 1.0)


class Recorder:
    """A tracker that keeps what it is told, and fails or hangs where it is asked to."""

    def __init__(self, *, fail: bool = False, wait: threading.Event | None = None) -> None:
        self.numbers: list[tuple[int, dict[str, float]]] = []
        self.texts: list[tuple[int, str, int]] = []
        self.ended: list[bool] = []
        self._fail = fail
        self._wait = wait

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._wait is not None:
            self._wait.wait(30)
        if self._fail:
            raise ConnectionError("no route to the server\nsecond line")
        self.numbers.append((step, dict(values)))

    def log_samples(self, step: int, name: SamplesOf, samples: Sequence[TextSample]) -> None:
        self.texts.append((step, name, len(samples)))

    def close(self, *, ended_well: bool) -> None:
        self.ended.append(ended_well)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_every_tracker_hears_everything_in_order() -> None:
    first, second = Recorder(), Recorder()
    trackers = Trackers({"one": lambda: first, "two": lambda: second})
    for step in range(3):
        trackers.log(step, {"a": step / 2, "bad": float("nan"), "worse": float("inf")})
    trackers.log_samples(2, "eval", [SAMPLE, SAMPLE])
    trackers.log_samples(2, "step", [])
    trackers.close(ended_well=True)
    for tracker in (first, second):
        assert tracker.numbers == [(0, {"a": 0.0}), (1, {"a": 0.5}), (2, {"a": 1.0})]
        assert tracker.texts == [(2, "eval", 2)] and tracker.ended == [True]


def test_a_failing_tracker_is_said_once_and_then_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Recorder(fail=True), Recorder()
    trackers = Trackers({"bad": lambda: bad, "good": lambda: good})
    for step in range(20):
        trackers.log(step, {"a": 1.0})
    trackers.close(ended_well=False)
    assert len(good.numbers) == 20 and good.ended == [False]
    assert bad.ended == []  # given up after five
    assert warnings(caplog) == [
        "bad failed: ConnectionError: no route to the server; the run goes on",
        "bad failed 5 times in a row and is left alone; metrics.jsonl has all",
    ]


def test_one_that_cannot_be_opened_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Recorder:
        raise ModuleNotFoundError("No module named 'wandb'")

    trackers = Trackers({"W&B": broken})
    trackers.log(0, {"a": 1.0})
    trackers.close(ended_well=True)
    (said,) = warnings(caplog)
    assert said.startswith("W&B cannot be used (ModuleNotFoundError: No module named 'wandb')")


@pytest.mark.parametrize("when", ["open", "log"])
def test_one_that_exits_is_said_and_hears_the_end(
    caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """`sys.exit` in a tracker's library ended its thread without a word: nobody heard the rest."""

    class Exiting(Recorder):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            if step == 0:
                sys.exit("no licence")
            super().log(step, values)

    tracker = Exiting()

    def build() -> Recorder:
        return sys.exit("no licence") if when == "open" else tracker

    trackers = Trackers({"W&B": build})
    for step in range(2):
        trackers.log(step, {"a": 1.0})
    trackers.close(ended_well=True)
    (said,) = warnings(caplog)
    assert "SystemExit: no licence" in said and "the run goes on" in said
    heard = ([], []) if when == "open" else ([(1, {"a": 1.0})], [True])
    assert (tracker.numbers, tracker.ended) == heard


def test_one_that_hangs_delays_nothing_but_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fan_out, "CLOSE_S", 0.3)
    monkeypatch.setattr(fan_out, "_MOST_WAITING", 4)
    release = threading.Event()
    hanging, good = Recorder(wait=release), Recorder()
    trackers = Trackers({"slow": lambda: hanging, "good": lambda: good})
    began = time.monotonic()
    for step in range(10):
        trackers.log(step, {"a": 1.0})
        time.sleep(0.01)  # the good one keeps up
    assert time.monotonic() - began < 5
    trackers.close(ended_well=True)
    assert time.monotonic() - began < 10
    assert len(good.numbers) == 10 and good.ended == [True]
    said = warnings(caplog)
    assert any("slow does not keep up: 4 calls wait" in line for line in said)
    assert any("slow did not end within" in line for line in said)
    assert any(line.startswith("slow missed") for line in said)
    release.set()


def test_one_that_fell_behind_is_told_that_the_run_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fan_out, "_MOST_WAITING", 4)
    release = threading.Event()
    behind = Recorder(wait=release)
    trackers = Trackers({"behind": lambda: behind})
    for step in range(10):
        trackers.log(step, {"a": 1.0})
    threading.Timer(0.2, release.set).start()  # full when `close` comes, and then it goes on
    began = time.monotonic()
    trackers.close(ended_well=True)
    assert behind.ended == [True] and time.monotonic() - began < 10


def test_trackers_that_open_at_once_all_keep_their_ids(tmp_path: Path) -> None:
    names = [f"tracker {number}" for number in range(16)]
    start = threading.Barrier(len(names))

    def keep(name: str) -> None:
        start.wait(10)
        write_id(tmp_path, name, name)

    threads = [threading.Thread(target=keep, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_ids(tmp_path) == {name: name for name in names}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("reward/source/a&b (v2), c+d", "reward/source/a_b _v2__ c_d"),
        ("eval/check/a:b[c]", "eval/check/a:b_c_"),
        ("reward/source/größe-1.5", "reward/source/größe-1.5"),
    ],
)
def test_mlflow_can_store_every_name(name: str, given: str) -> None:
    assert _metric_name(name) == given


def test_a_resumed_run_shows_the_evaluation_of_its_checkpoint(tmp_path: Path) -> None:
    """Both are points at 2: the evaluation after two steps stays, the third step comes anew."""
    run = TrackedRun(tmp_path, "run", "train", {})
    first = TensorBoard(run, purge_step=None)
    first.log(1, {"reward/mean": 0.1})
    first.log(2, {"eval/reward": 0.5})
    first.log(2, {"reward/mean": 0.2})
    first.close(ended_well=False)
    time.sleep(1.1)  # event files are read in the order of their seconds
    kept = [StepMetrics(2, {"eval/reward": 0.5, "eval/odd": float("nan")})]
    second = TensorBoard(run, purge_step=2, again=kept)
    second.log(2, {"reward/mean": 0.3})
    second.close(ended_well=True)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, round(e.value, 3)) for e in board.Scalars("eval/reward")] == [(2, 0.5)]
    assert [(e.step, round(e.value, 3)) for e in board.Scalars("reward/mean")] == [
        (1, 0.1),
        (2, 0.3),
    ]
    assert "eval/odd" not in board.Tags()["scalars"]


def run_config(folder: Path, *, resume: bool = False, **tracking: Any) -> Config:
    return Config(
        run=RunConfig(dir=str(folder), name="a run", resume=resume),
        model=ModelConfig(path="toy"),
        tracking=TrackingConfig(**tracking),
    )


def test_markdown_shows_text_as_it_is() -> None:
    assert SAMPLE.markdown() == (
        "**prompt**\n\n    user: hi\n    # no title\n\n"
        "**response, reward 0.500**\n\n    a\n    b\n\n"
        "**unmet**\n\n    c1\n    c2\n\n"
        "**revision, reward 1.000**\n\n    better"
    )


def test_tensorboard_has_numbers_and_the_configuration(tmp_path: Path) -> None:
    with RunFolder.create(run_config(tmp_path)) as folder:
        folder.log(0, {"reward/mean": 0.25})
    board = EventAccumulator(str(folder.path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("reward/mean")] == [(0, 0.25)]
    (text,) = board.Tensors("config/text_summary")
    assert b'"path": "toy"' in text.tensor_proto.string_val[0]


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    with RunFolder.create(run_config(tmp_path, tensorboard=False)) as folder:
        folder.log(0, {"reward/mean": 0.25})
    assert not (folder.path / "tensorboard").exists()
    assert not (folder.path / "trackers.json").exists()


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_wandb_offline_goes_on_under_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library. Both starts of the run write to one W&B run, whose file holds the points
    and the table."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    for number in range(2):
        tracking = dict(wandb="offline", project="p", tensorboard=False)
        with RunFolder.create(
            run_config(tmp_path, resume=bool(number), **tracking), purpose="improve"
        ) as folder:
            if number:
                folder.take_back()
            folder.log(number, {"reward/mean": 0.25})
            folder._trackers.log_samples(number, "eval", [SAMPLE])
    (name,) = {folder.name.rpartition("-")[2] for folder in (folder.path / "wandb").glob("off*")}
    assert read_ids(folder.path) == {"wandb": name}
    tables = list((folder.path / "wandb").rglob("*.table.json"))
    rows = [json.loads(table.read_text())["data"][0][:3] for table in tables]
    shown = [SAMPLE.prompt, SAMPLE.response]
    assert sorted(rows) == [[0, *shown], [1, *shown]]


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, with a folder as its server."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = f"file:{tmp_path / 'mlruns'}"
    for number in range(2):
        with RunFolder.create(
            run_config(
                tmp_path, resume=bool(number), mlflow=where, tensorboard=False, group="seeds"
            ),
            purpose="improve",
        ) as folder:
            if number:
                folder.take_back()
            folder.log(number, {"reward/mean": 0.25 + number, "eval/check/a:b[c]": 1.0})
            folder._trackers.log_samples(number, "eval", [SAMPLE])
    client = MlflowClient(where)
    (experiment,) = [e for e in client.search_experiments() if e.name == "herl_megatron"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert read_ids(folder.path) == {"mlflow": run.info.run_id}
    assert run.info.status == "FINISHED" and run.data.tags["group"] == "seeds"
    assert run.data.params["model.path"] == "toy"
    points = client.get_metric_history(run.info.run_id, "reward/mean")
    assert [(p.step, p.value) for p in points] == [(0, 0.25), (1, 1.25)]
    names = [a.path for a in client.list_artifacts(run.info.run_id, "samples")]
    assert names == ["samples/eval_000000.md", "samples/eval_000001.md"]
