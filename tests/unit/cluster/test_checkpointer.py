"""When saves start, how they end, and what a failed one does to the run."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.cluster.checkpointer import Checkpointer
from herl_megatron.config.schema import (
    CheckpointConfig,
    Config,
    ModelConfig,
    RunConfig,
    TrainConfig,
)


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
