"""What a run does with its folder, without training; and what a folder holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from herl_megatron.config.schema import (
    Config,
    ModelConfig,
    RunConfig,
)
from herl_megatron.run.checkpoints import (
    DriverState,
    publish_checkpoint,
    start_checkpoint,
)
from herl_megatron.run.folder import RunFolder


def config(folder: Path, name: str = "run", **run: Any) -> Config:
    return Config(run=RunConfig(dir=str(folder), name=name, **run), model=ModelConfig(path="toy"))


def save(folder: RunFolder, step: int, keep: int = 2) -> None:
    staging = start_checkpoint(folder.path, step)
    (staging / "trainer" / "__0_0.distcp").write_bytes(b"weights %d" % step)
    (staging / "trainer" / ".metadata").write_bytes(b"names")
    settings = config(folder.path.parent, folder.path.name).model_dump(mode="json")
    driver = DriverState(step, folder.sync_metrics(), {}, None, settings)
    publish_checkpoint(staging, driver, keep=keep, written={})


def play(settings: Config, *, steps: int = 2, save_at: int = 0) -> None:
    """What a run does with its folder: from its checkpoint on, to the end of `steps`."""
    with RunFolder.create(settings) as folder:
        folder.take_back()
        first = folder.checkpoint.driver.step if folder.checkpoint else 0
        for step in range(first, first + steps):
            folder.log(step, {"reward/mean": 0.5})
            folder.log_rollouts(f"step_{step:06d}", [])
            if step + 1 == save_at:
                save(folder, step + 1)
        if not folder.policy.exists():
            folder.policy.mkdir()
            (folder.policy / "config.json").write_text("{}")
            (folder.policy / "herl_export.json").write_text('{"files": ["config.json"]}')
        folder.write_json("summary.json", {})


def contents(root: Path) -> dict[str, bytes | str]:
    """Every file, link and folder below `root`; what a lock says of its holder does not count."""
    found: dict[str, bytes | str] = {}
    for parent, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(parent) / name
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[key] = b"" if name == "run.lock" else path.read_bytes()
            else:
                found[key] = "folder"
    return found
