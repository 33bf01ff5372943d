"""When saves start, how they end, and what a failed one does to the run."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    JudgeConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from herl_megatron.errors import PausedByBudget, SavedForResume
from herl_megatron.rollout.liveness import DeadPolicyError
from herl_megatron.rubrics.budget import Budget
from herl_megatron.run.checkpointer import Checkpointer
from herl_megatron.run.checkpoints import Checkpoint, DriverState


class Trainer:
    """Ranks that write one file, or have no room for it."""

    def __init__(self, *, full_at: int) -> None:
        self.saves = 0
        self._full_at = full_at

    async def save_checkpoint(self, folder: Path) -> dict[str, Any]:
        self.saves += 1
        await asyncio.sleep(0.01)
        if self.saves == self._full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        (folder / "part").write_bytes(b"weights")
        return {"part": {"bytes": 7, "xxh128": "as the rank said"}}


class Source:
    """A prompt cursor."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": 7}


def steps(tmp_path: Path, trainer: Trainer, count: int, *, every: int) -> int:
    """The step after which the run ended; `count` if nothing ended it."""
    config = Config(
        run=RunConfig(dir=str(tmp_path), name="run"),
        model=ModelConfig(path="toy"),
        train=TrainConfig(steps=count),
        checkpoint=CheckpointConfig(every=every, keep=9),
    )

    async def loop() -> int:
        saves: Any = Checkpointer(config, trainer, Source())  # type: ignore[arg-type]
        for step in range(1, count + 1):
            try:
                await saves.save_if_due(step, 100 * step, None)
            except OSError:
                await saves.close()
                return step
            while len(asyncio.all_tasks()) > 1:  # the next step takes longer than a save
                await asyncio.sleep(0.001)
        await saves.finish()
        return count

    return asyncio.run(loop())


def test_saves_are_published_beside_the_steps(tmp_path: Path) -> None:
    assert steps(tmp_path, Trainer(full_at=0), 5, every=2) == 5
    saved = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert [folder.name for folder in saved] == ["step_000002", "step_000004", "step_000005"]
    driver = json.loads((saved[1] / "driver.json").read_text())
    assert (driver["step"], driver["metrics_bytes"]) == (4, 400)
    assert driver["prompts"] == {"position": 7}
    files = json.loads((saved[1] / "manifest.json").read_text())["files"]
    assert files["trainer/part"] == {"bytes": 7, "xxh128": "as the rank said"}
    assert files.keys() == {"trainer/part", "driver.json"}


def test_a_failed_save_is_told_at_once_and_ends_the_run_one_step_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("herl_megatron")
    logger.addHandler(caplog.handler)  # it does not propagate once `setup_logging` has run
    trainer = Trainer(full_at=2)
    ended = steps(tmp_path, trainer, 20, every=4)
    logger.removeHandler(caplog.handler)
    assert ended == 9 and trainer.saves == 2  # the save of step 8 failed; the next was due at 12
    (line,) = {r.getMessage() for r in caplog.records if r.levelname == "ERROR"}
    assert line == "the checkpoint of step 8 failed: [Errno 28] No space left on device"
    saved = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert [folder.name for folder in saved] == ["step_000004"]


def test_a_dead_policy_is_not_saved_and_the_one_checkpoint_kept_stays(tmp_path: Path) -> None:
    """The weights are asked before a save that is due, and only then."""
    config = Config(
        run=RunConfig(dir=str(tmp_path), name="run"),
        model=ModelConfig(path="toy"),
        train=TrainConfig(steps=9),
        checkpoint=CheckpointConfig(every=2, keep=1),
    )
    asked = []

    async def require_alive(version: int) -> None:
        asked.append(version)
        if version == 4:
            raise DeadPolicyError("dead")

    async def loop() -> None:
        trainer: Any = Trainer(full_at=0)
        saves = Checkpointer(config, trainer, Source(), require_alive=require_alive)  # type: ignore[arg-type]
        for step in range(1, 10):
            await saves.save_if_due(step, 0, None)
            await asyncio.sleep(0.05)

    with pytest.raises(DeadPolicyError):
        asyncio.run(loop())
    assert asked == [2, 4]
    saved = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert [folder.name for folder in saved] == ["step_000002"]


class Restored(Trainer):
    """Ranks that read whatever they are given."""

    async def load_checkpoint(self, folder: Path, *, version: int) -> None:
        """Nothing to read."""


class RestoredSource(Source):
    """Rollouts that go on anywhere."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {"position": 7}


@pytest.mark.parametrize("changed", [(), ("eval.temperature", "data.eval")])
def test_before_is_left_out_where_the_evaluation_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: tuple[str, ...]
) -> None:
    """0.406 of 8 rows at one temperature and 0.503 of 16 others are no gain of 0.097."""
    driver = DriverState(3, 0, {"position": 7}, {"reward": 0.406, "all_satisfied": 0.0}, {})
    config = Config(model=ModelConfig(path="toy"))
    saves: Any = Checkpointer(config, Restored(full_at=0), RestoredSource())  # type: ignore[arg-type]
    step, before = asyncio.run(saves.restore(Checkpoint(tmp_path, driver, changed)))
    assert step == 3
    if changed:
        assert before is None
        assert "eval.temperature, data.eval" in caplog.text and "is left out" in caplog.text
    else:
        assert before.reward == 0.406


@pytest.mark.parametrize(
    ("caps", "evaluates", "ended"),
    [
        ({"max_calls": 35}, False, 3),  # 10 calls a step: 5 are left after the third
        ({"max_calls": 40}, False, 4),
        ({"max_calls": 50}, False, None),  # nothing is judged after the last step
        ({"max_calls": 50}, True, 5),
        ({}, True, None),
    ],
)
def test_a_run_is_saved_and_paused_where_its_judges_budget_ends(
    tmp_path: Path, caps: dict[str, Any], evaluates: bool, ended: int | None
) -> None:
    config = Config(
        run=RunConfig(dir=str(tmp_path), name="run"),
        model=ModelConfig(path="toy"),
        data=DataConfig(eval="held_out.jsonl" if evaluates else ""),
        train=TrainConfig(steps=5),
        checkpoint=CheckpointConfig(every=0),
    )
    budget = Budget(JudgeConfig(**caps), stops=False)

    async def loop() -> int | None:
        trainer: Any = Trainer(full_at=0)
        saves = Checkpointer(config, trainer, Source(), budget=budget)  # type: ignore[arg-type]
        for step in range(1, 6):
            for _ in range(10):
                budget.call()
            try:
                await saves.save_if_due(step, 0, None)
            except PausedByBudget as error:
                assert str(error).startswith(f"{step} steps are done and saved; judge.max_calls ")
                assert isinstance(error, SavedForResume)
                return step
        return None

    assert asyncio.run(loop()) == ended
    saved = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert [f.name for f in saved] == ([f"step_{ended:06d}"] if ended else [])
