"""A run's folder on disk: what is written, when, and what is never deleted."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config, ModelConfig, RunConfig
from herl_megatron.observability.curves import draw_learning_curve, plot_learning_curve
from herl_megatron.observability.timers import Timers
from herl_megatron.run.folder import RunFolder
from herl_megatron.types import StepMetrics


@dataclass
class Result:
    reward: float
    all_satisfied: float


def config(folder: Path, *, overwrite: bool = False) -> Config:
    return Config(
        run=RunConfig(dir=str(folder), name="a run", overwrite=overwrite),
        model=ModelConfig(path="toy"),
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_named_files_stay_where_a_run_without_checkpoints_is_resumed(tmp_path: Path) -> None:
    """As `herl improve` does: nothing goes before the run says that it has something new."""
    with RunFolder.create(config(tmp_path), purpose="improve") as folder:
        folder.log(0, {"improve/reward": 0.5})
        (folder.path / "trajectories.jsonl").write_text("{}\n")
        (folder.path / "mine.txt").write_text("mine")
    resumed = config(tmp_path).model_copy(
        update={"run": RunConfig(dir=str(tmp_path), name="a run", resume=True)}
    )
    with RunFolder.create(resumed, purpose="improve") as again:
        assert len(lines(again.path / "metrics.jsonl")) == 1
        again.take_back(keep=("trajectories.jsonl",))
        assert lines(again.path / "metrics.jsonl") == []
        assert (again.path / "trajectories.jsonl").read_text() == "{}\n"
    with RunFolder.create(config(tmp_path, overwrite=True), purpose="improve") as new:
        assert not (new.path / "trajectories.jsonl").exists()
        assert (new.path / "mine.txt").read_text() == "mine"


def test_metrics_are_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with RunFolder.create(config(tmp_path)) as folder:
        folder.log(0, {"reward/mean": 0.25, "train/loss": math.nan})
        folder.log(1, {"reward/mean": 0.5, "train/ratio_max": math.inf})
        assert lines(folder.path / "metrics.jsonl") == [
            {"step": 0, "reward/mean": 0.25, "train/loss": None},
            {"step": 1, "reward/mean": 0.5, "train/ratio_max": None},
        ]
    board = EventAccumulator(str(folder.path / "tensorboard"))
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("reward/mean")]
    assert points == [(0, 0.25), (1, 0.5)]


def test_configuration_is_saved_and_loads_again(tmp_path: Path) -> None:
    with RunFolder.create(config(tmp_path)) as folder:
        assert load_config(folder.path / "config.yaml") == config(tmp_path)


def test_an_existing_run_is_replaced_only_on_request(tmp_path: Path) -> None:
    with RunFolder.create(config(tmp_path)) as folder:
        folder.log(0, {"reward/mean": 0.25})
    with pytest.raises(ValueError, match=r"run\.overwrite=true"):
        RunFolder.create(config(tmp_path))
    assert len(lines(folder.path / "metrics.jsonl")) == 1
    with RunFolder.create(config(tmp_path, overwrite=True)) as again:
        assert (again.path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_never_takes_the_folder_of_a_living_one(
    tmp_path: Path, overwrite: bool
) -> None:
    """Also before the first has written a number: until then a folder may be started anew."""
    with RunFolder.create(config(tmp_path)) as first:
        with pytest.raises(ValueError, match=rf"writing in .*a run \(process {os.getpid()} on "):
            RunFolder.create(config(tmp_path, overwrite=overwrite))
        first.log(0, {"reward/mean": 0.25})
    assert len(lines(first.path / "metrics.jsonl")) == 1
    with RunFolder.create(config(tmp_path, overwrite=True)) as again:
        assert lines(again.path / "metrics.jsonl") == []


def test_a_killed_run_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from herl_megatron.run.lock import RunLock\n"
        "lock = RunLock.take(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a run")], stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"process {holder.pid} on "):
        RunFolder.create(config(tmp_path))
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with RunFolder.create(config(tmp_path)) as folder:  # only a lock was there: nothing to keep
        folder.log(0, {"reward/mean": 0.25})


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "a run" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(ValueError, match="never deleted"):
        RunFolder.create(config(tmp_path, overwrite=True))
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("engine 1 died"), "RuntimeError: engine 1 died"),
        (asyncio.CancelledError(), "interrupted"),  # how SIGTERM and Ctrl-C arrive
    ],
)
def test_failure_is_in_the_log_and_files_are_closed(
    tmp_path: Path, error: BaseException, said: str
) -> None:
    with pytest.raises(type(error)), RunFolder.create(config(tmp_path)) as folder:
        raise error
    assert f"run ended early: {said}\n" in (folder.path / "run.log").read_text()
    with pytest.raises(ValueError, match="closed"):
        folder.log(1, {"reward/mean": 1.0})
    handlers = logging.getLogger("herl_megatron").handlers
    assert not [h for h in handlers if isinstance(h, logging.FileHandler)]


def test_finish_writes_summary_and_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.create(config(tmp_path)) as folder:
        for step in folder.progress(range(2), "HeRL"):
            folder.log(step, {"reward/mean": step / 2, "reward/all_satisfied": 0.0})
        folder.finish(before=Result(0.25, 0.0), after=Result(0.75, 0.5), timers=Timers())
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["reward"] == {"before": 0.25, "after": 0.75}
    assert set(summary["seconds"]) == {"other", "total"}
    assert "+0.500" in capsys.readouterr().out
    assert not list(folder.path.glob("*.tmp"))


def test_a_loop_says_its_steps_and_an_evaluation_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Short steps share a line; evaluations and the last step have their own."""
    caplog.set_level(logging.INFO, logger="herl_megatron")
    with RunFolder.create(config(tmp_path)) as folder:
        seen = []
        for step in folder.progress(range(60), "SFT"):
            seen.append(step)
            folder.log(step, {"sft/loss": float(step)})
        folder.log(60, {"eval/reward": 0.25, "eval/all_satisfied": 0.125, "eval/unscored": 0.0})
    assert seen == list(range(60))
    shown = [line.partition(": ")[2] for line in (folder.path / "run.log").read_text().splitlines()]
    assert [line.split("  ")[:2] for line in shown[:2]] == [
        ["SFT 1/60", "loss 0"], ["SFT 60/60", "loss 59"],
    ]  # fmt: skip
    assert shown[2] == "evaluation after 60 steps  reward 0.250  all satisfied 0.125  unscored 0"
    assert len(shown) == 3


def test_curve_shows_its_data() -> None:
    nan = math.nan
    history = (
        StepMetrics(0, {"eval/reward": 0.25, "eval/all_satisfied": 0.0}),
        StepMetrics(0, {"reward/mean": 0.3, "hindsight/revisions": 4, "hindsight/accepted": 3}),
        StepMetrics(1, {"hindsight/revisions": 2, "hindsight/accepted": 0}),  # nothing scored
        StepMetrics(2, {"reward/mean": nan, "reward/all_satisfied": 0.5}),
        StepMetrics(3, {"eval/reward": 0.75, "eval/all_satisfied": 0.5}),
    )
    figure = draw_learning_curve(history, title="toy")
    reward, satisfied, revisions = figure.axes
    drawn = [
        [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
        for axes in (reward, satisfied)
    ]
    assert drawn[0] == [[[0, 0.3], [2, pytest.approx(nan, nan_ok=True)]], [[0, 0.25], [3, 0.75]]]
    assert drawn[1] == [[[2, 0.5]], [[0, 0], [3, 0.5]]]
    assert [text.get_text() for text in reward.texts] == ["0.25", "0.75"]  # before and after
    bars = [bar for bar in revisions.patches if isinstance(bar, Rectangle)]
    assert [bar.get_height() for bar in bars] == [4, 2, 3, 0]


@pytest.mark.parametrize("history", [(), (StepMetrics(0, {"eval/reward": 0.25}),)])
def test_curve_of_hardly_anything_is_a_picture(
    tmp_path: Path, history: tuple[StepMetrics, ...]
) -> None:
    plot_learning_curve(history, tmp_path / "curve.png", title="toy")
    pixels = imread(tmp_path / "curve.png")
    assert pixels.shape[:2] == (604, 1440)
    assert pixels.std() > 0.05


def test_what_was_half_written_when_the_run_ended_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder.create(config(tmp_path)) as folder:
        whole = folder.path / "checkpoints" / "step_000002" / "trainer"
        whole.mkdir(parents=True)
        (whole / "mine.tmp").write_text("herl did not write it")
        for name in (".policy.partial", "checkpoints/.step_000003.partial/trainer"):
            (folder.path / name).mkdir(parents=True)
            (folder.path / name / "model.safetensors").write_bytes(b"half")
        (folder.path / "rollouts").mkdir()
        for name in ("summary.json.tmp", "rollouts/step_000002.jsonl.tmp", "notes.tmp"):
            (folder.path / name).write_text("half")
        raise KeyboardInterrupt
    left = {str(p.relative_to(folder.path)) for p in folder.path.rglob("*")}
    torn = {name for name in left if name.endswith((".tmp", ".partial", ".safetensors"))}
    assert torn == {"checkpoints/step_000002/trainer/mine.tmp", "notes.tmp"}
