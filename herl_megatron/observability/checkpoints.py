"""A run's checkpoints on disk: what makes one complete, which one a run continues from.

    RUN/checkpoints/step_000020/      published by one rename
        trainer/                      every rank's part (`megatron.checkpoint`)
        driver.json                   step, prompt cursor, position in metrics.jsonl, configuration
        manifest.json                 size and hash of every other file, written last
    RUN/checkpoints/latest            link to the newest

A folder that does not match its manifest is damaged and skipped, with a message; one that was
being written when the run was killed still has another name and is removed by the next save.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from herl_megatron.config.load import ConfigError
from herl_megatron.config.paths import checkpoint_folders, folder_problem, run_path
from herl_megatron.config.schema import Config
from herl_megatron.observability.manifest import FileFacts, damage, write_manifest

logger = logging.getLogger(__name__)

_DRIVER = "driver.json"
_DECIDES_NUMBERS = (
    "run.seed", "model", "data.max_prompt_tokens", "data.max_experience_tokens", "data.shuffle",
    "rollout.group_size", "rollout.temperature", "rollout.top_p", "rollout.top_k",
    "rollout.max_response_tokens", "rollout.dtype", "rollout.quantization",
    "rollout.mode", "rollout.oversample",
    "rollout.max_staleness", "hindsight", "algorithm", "scoring.answer_after",
    "train.prompts_per_step", "train.prompts_per_optimizer_step", "optimizer",
    "megatron.precision", "megatron.fp8", "megatron.fp8_bf16_layers",
    "megatron.distributed_optimizer",
)  # fmt: skip
"""Keys and sections that a resumed run must share with its checkpoint; rows are compared too."""


@dataclass(frozen=True)
class DriverState:
    """What the driver needs to go on: steps done, and where its files and prompts stand."""

    step: int
    """Steps done, which is also the weight version."""
    metrics_bytes: int
    """Length of metrics.jsonl."""
    prompts: Mapping[str, Any]
    """`GroupSource.state_dict()` (`rollout.schedule`): the prompt cursor and groups under way."""
    before: Mapping[str, float] | None
    """`reward` and `all_satisfied` before the first step; None without an evaluation."""
    config: Mapping[str, Any]
    """The run's configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and the driver's part of it."""

    folder: Path
    driver: DriverState


def start_checkpoint(run: Path, step: int) -> Path:
    """An empty folder to write step `step`'s checkpoint into; remnants of killed saves go."""
    parent = run / "checkpoints"
    for remnant in parent.glob(".step_*.partial"):
        shutil.rmtree(remnant)
    staging = parent / f".step_{step:06d}.partial"
    (staging / "trainer").mkdir(parents=True)
    return staging


def publish_checkpoint(
    staging: Path, driver: DriverState, *, keep: int, written: Mapping[str, FileFacts]
) -> Path:
    """Finish the folder, rename it, let `latest` follow, and remove all but the newest `keep`.

    written: size and hash of the ranks' files by path in `staging`, as the ranks hashed them while
        they wrote, perhaps on other machines; what is not among them is read and hashed here.

    It is on disk before an older one goes. Of a later step there are only damaged ones, behind
    which the run went back: they neither stay in place of a good one nor are removed.

    Raises:
        OSError: the disk is full, or a file of `written` is not here in its size.
    """
    (staging / _DRIVER).write_text(json.dumps(asdict(driver), indent=1) + "\n", encoding="utf-8")
    write_manifest(staging, known=written)
    _flush(staging)
    folder = staging.with_name(f"step_{driver.step:06d}")
    if folder.exists():  # a damaged one, or the run went back behind it
        shutil.rmtree(folder)
    os.rename(staging, folder)
    link = folder.with_name(".latest.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, folder.with_name("latest"))
    _flush_one(folder.parent)
    saved = checkpoint_folders(folder.parent.parent)
    for old in saved[saved.index(folder) + keep :]:
        shutil.rmtree(old)
    return folder


def find_checkpoint(config: Config) -> Checkpoint | None:
    """What this run continues from; None if it starts from the beginning.

    Raises:
        ConfigError: the run's folder cannot be used (`config.paths`), all its checkpoints are
            damaged, the newest is another version's, or a key that decides the numbers differs.
    """
    if problem := folder_problem(config):
        raise ConfigError([problem])
    folders = checkpoint_folders(run_path(config)) if config.run.resume else []
    damaged = []
    for folder in folders:
        if what := damage(folder):
            damaged.append(f"{folder} is damaged ({what})")
            continue
        for line in damaged:
            logger.warning("%s; using %s instead", line, folder)
        checkpoint = Checkpoint(folder, _read_driver(folder))
        if problems := list(_differences(checkpoint, config)):
            raise ConfigError(problems)
        return checkpoint
    if damaged:
        fix = "restore one, or start over with run.resume=false run.overwrite=true"
        raise ConfigError([f"{line}; {fix}" for line in damaged])
    return None


def _flush(folder: Path) -> None:
    """Everything in `folder` to disk; what is there already costs nothing."""
    for path in (*folder.rglob("*"), folder):
        _flush_one(path)


def _flush_one(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read_driver(folder: Path) -> DriverState:
    values = json.loads((folder / _DRIVER).read_text(encoding="utf-8"))
    known = {field.name for field in fields(DriverState)}
    if odd := known.symmetric_difference(values):
        raise ConfigError(
            [
                f"{folder} was written by another version of herl_megatron: its {_DRIVER} differs"
                f" in {', '.join(sorted(odd))}; resume with that version, or start a new run from"
                " it with model.megatron_path"
            ]
        )
    return DriverState(**values)


def _differences(checkpoint: Checkpoint, config: Config) -> Iterator[str]:
    """Keys that decide the numbers and are not as they were; a key unknown then is new since."""
    old, new = _flat(checkpoint.driver.config), _flat(config.model_dump(mode="json"))
    fixed = list(_DECIDES_NUMBERS)
    if config.optimizer.schedule != "constant":
        fixed.append("train.steps")  # the learning rate decays over the run's length
    for key, value in new.items():
        is_fixed = any(key == name or key.startswith(f"{name}.") for name in fixed)
        if is_fixed and key in old and old[key] != value:
            yield (
                f"{key} is {value!r} but {checkpoint.folder} was made with {old[key]!r}; resume"
                " with that value, or give the new run another run.name"
            )
    if checkpoint.driver.step > config.train.steps:
        yield (
            f"train.steps is {config.train.steps} but {checkpoint.folder} has done"
            f" {checkpoint.driver.step}; raise it"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
