"""A run's checkpoints on disk: what makes one complete, which one a run continues from.

    RUN/checkpoints/step_000020/      published by one rename
        trainer/                      every rank's part (`megatron.checkpoint`)
        driver.json                   step, prompt cursor, position in metrics.jsonl, configuration,
                                      fingerprints of what was read, package versions
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from herl_megatron.config import history
from herl_megatron.config.decides import differences
from herl_megatron.config.load import ConfigError
from herl_megatron.config.loop_keys import LoopKeys, loop_keys
from herl_megatron.config.paths import aside, run_path
from herl_megatron.config.purpose import TUNES, Purpose
from herl_megatron.config.schema import Config
from herl_megatron.config.schema.base import Decides
from herl_megatron.config.upgrade import FIRST, upgraded, version_problem
from herl_megatron.data.fingerprints import of_evaluation
from herl_megatron.files.manifest import FileFacts, damage, write_manifest
from herl_megatron.files.run_files import (
    DRIVER,
    UNPUBLISHED_STEP,
    checkpoint_folders,
    is_run,
    own_checkpoint_files,
)
from herl_megatron.files.strict_json import read_object
from herl_megatron.observability.versions import version_changes

logger = logging.getLogger(__name__)

_ADDED: Mapping[str, Any] = {"fingerprints": {}, "versions": {}, "schema_version": FIRST}
"""Of `DriverState`, what earlier versions did not write, and what it was then."""
_KINDS: Mapping[str, tuple[type, ...]] = {
    "step": (int,), "metrics_bytes": (int,), "prompts": (dict,), "before": (dict, type(None)),
    "config": (dict,), "fingerprints": (dict,), "versions": (dict,),
}  # fmt: skip
"""Of `DriverState`, as its file holds it."""


@dataclass(frozen=True)
class DriverState:
    """What the driver needs to go on: steps done, and where its files and prompts stand."""

    step: int
    """Steps done, which is also the weight version."""
    metrics_bytes: int
    """Length of metrics.jsonl."""
    prompts: Mapping[str, Any]
    """`Resumable.state_dict()` (`run.checkpointer`): of `train` the prompt cursor and groups under
    way, of `dpo` the reference's log-probs."""
    before: Mapping[str, float] | None
    """`reward` and `all_satisfied` before the first step; None without an evaluation."""
    config: Mapping[str, Any]
    """The run's configuration; that of a checkpoint which is read has the names of today."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of what the run read (`data.fingerprints`), by name."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that it ran with (`observability.versions`)."""
    schema_version: int = field(default_factory=lambda: history.HISTORY.version)
    """Of the configuration's keys (`config.history`)."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and the driver's part of it.

    other_evaluation: what was changed since about the held-out numbers, so that those from before
        do not compare with later ones; empty for nothing.
    damaged: newer ones that cannot be used.
    """

    folder: Path
    driver: DriverState
    other_evaluation: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()


def start_checkpoint(run: Path, step: int) -> Path:
    """An empty folder to write step `step`'s checkpoint into; remnants of killed saves go."""
    parent = run / "checkpoints"
    for remnant in parent.glob(".step_*.partial"):
        if UNPUBLISHED_STEP.fullmatch(remnant.name):
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
    text = json.dumps(asdict(driver), indent=1, allow_nan=False)
    (staging / DRIVER).write_text(text + "\n", encoding="utf-8")
    write_manifest(staging, known=written)
    _flush(staging)
    folder = staging.with_name(f"step_{driver.step:06d}")
    if folder.exists():  # a damaged one, or the run went back behind it
        remove_files(own_checkpoint_files(folder), folder.parent)
        if not any(file.is_file() or file.is_symlink() for file in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        os.rename(folder, moved := aside(folder))
        logger.warning("%s held files that herl did not write; they are in %s", folder, moved)
    os.rename(staging, folder)
    link = folder.with_name(".latest.tmp")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, folder.with_name("latest"))
    _flush_one(folder.parent)
    saved = checkpoint_folders(folder.parent.parent)
    for old in saved[saved.index(folder) + keep :]:
        remove_files(own_checkpoint_files(old), folder.parent)
    return folder


def remove_files(files: Iterable[Path], below: Path) -> None:
    """Remove files, and the folders below `below` that this leaves empty; a missing one is fine."""
    for file in list(files):
        file.unlink(missing_ok=True)
        for parent in file.parents:
            if parent == below or below not in parent.parents or any(parent.iterdir()):
                break
            parent.rmdir()


def find_checkpoint(
    config: Config,
    fingerprints: Mapping[str, str] | None = None,
    *,
    purpose: Purpose = "train",
) -> Checkpoint | None:
    """What this run of `herl PURPOSE` continues from; None if it starts from the beginning.

    fingerprints: of what the run reads now; None compares none.

    Raises:
        ConfigError: all its checkpoints are damaged, the newest is another version's, or something
            that decides numbers or verdicts is not as it was: a key, rows, tokenizer, chat
            template, checks or the judge's prompt.
    """
    folders = checkpoint_folders(run_path(config)) if config.run.resume else []
    damaged: list[str] = []
    for number, folder in enumerate(folders):
        driver = damage(folder) or _read_driver(folder)
        if isinstance(driver, str):
            damaged.append(f"{folder} is damaged ({driver})")
            continue
        for line in damaged:
            logger.warning("%s; using %s instead", line, folder)
        found = _fitting(folder, driver, config, fingerprints, purpose=purpose)
        return replace(found, damaged=tuple(folders[:number]))
    if damaged:
        fix = "restore one, or choose another run.name"
        if is_run(run_path(config)):
            fix += ", or start over with run.resume=false run.overwrite=true"
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


def _read_driver(folder: Path) -> DriverState | str:
    """The driver's part, or what is wrong with its file.

    Raises:
        ConfigError: it is of another version.
    """
    try:
        values = {**_ADDED, **read_object(folder / DRIVER)}
    except ValueError as error:
        return str(error)
    known = {field.name for field in fields(DriverState)}
    if odd := known.symmetric_difference(values):
        raise ConfigError(
            [
                f"{folder} was written by another version of herl_megatron: its {DRIVER} differs"
                f" in {', '.join(sorted(odd))}; resume with that version, or start a new run from"
                " it with model.megatron_path"
            ]
        )
    if problem := version_problem(version := values["schema_version"]):
        raise ConfigError([f"{folder}: {problem}"])
    if wrong := [name for name, kinds in _KINDS.items() if type(values[name]) not in kinds]:
        return f"{DRIVER} says {values[wrong[0]]!r:.40} for {wrong[0]}"
    if not all(isinstance(section, dict) for section in values["config"].values()):
        return f"{DRIVER} holds no configuration"
    config = upgraded(values["config"], version)
    return DriverState(**values | {"config": config, "schema_version": history.HISTORY.version})


def _fitting(
    folder: Path,
    driver: DriverState,
    config: Config,
    fingerprints: Mapping[str, str] | None,
    *,
    purpose: Purpose,
) -> Checkpoint:
    """The checkpoint, if this run may go on from it; what is no reason against it is said."""
    kept, loop = driver.fingerprints, loop_keys(config, purpose=purpose)
    changed = _changed_inputs(kept, fingerprints or {})
    problems = [*_changed_keys(folder, driver, config, loop)]
    problems += [
        f"{name} is not what {folder} was made with ({(fingerprints or {})[name]} now, {kept[name]}"
        " then); resume with the same, or give the new run another run.name"
        for name in changed
        if not of_evaluation(name, purpose=purpose)
    ]
    if problems:
        raise ConfigError(problems)
    if fingerprints is not None:
        _say_unknown(folder, driver, fingerprints, purpose=purpose)
    if driver.versions and (others := list(version_changes(driver.versions))):
        logger.warning("other packages than when %s was made: %s", folder, ", ".join(others))
    if purpose in TUNES and not loop.evaluates:
        # What is said of evaluations decides nothing now, and nobody compares it for later.
        return Checkpoint(folder, replace(driver, before=None))
    if not _evaluated(driver, purpose):
        return Checkpoint(folder, driver, (f"{purpose}.eval_every",))
    other_evaluation = [
        path
        for path, _, _ in differences(
            driver.config, config, Decides.EVALUATION, purpose=purpose, by_path=not kept
        )
    ]
    other_evaluation += [name for name in changed if of_evaluation(name, purpose=purpose)]
    return Checkpoint(folder, driver, tuple(other_evaluation))


def _evaluated(driver: DriverState, purpose: Purpose) -> bool:
    """Whether the start that saved it evaluated, of a command that only may."""
    return purpose not in TUNES or bool(driver.config.get(purpose, {}).get("eval_every"))


def _changed_keys(
    folder: Path, driver: DriverState, config: Config, loop: LoopKeys
) -> Iterator[str]:
    """Keys that decide numbers or verdicts and are not as they were."""
    # The learning rate decays over the run's length; where it does not, a run may become longer.
    steps = f"{loop.purpose}.steps"
    free = [steps] if config.optimizer.schedule == "constant" else []
    if not driver.fingerprints:
        free.append("data.train")  # the prompts' ids are compared (`data.prompt_source`)
    for path, now, then in differences(
        driver.config, config, Decides.NUMBERS, Decides.VERDICTS, purpose=loop.purpose,
        leave_out=free, by_path=not driver.fingerprints,
    ):  # fmt: skip
        yield (
            f"{path} is {now!r} but {folder} was made with {then!r}; resume with that value, or"
            " give the new run another run.name"
        )
    if driver.step > loop.steps:
        yield f"{steps} is {loop.steps} but {folder} has done {driver.step}; raise it"


def _changed_inputs(kept: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What both fingerprints know and is not what it was."""
    return [name for name in sorted(kept.keys() & now.keys()) if kept[name] != now[name]]


def _say_unknown(
    folder: Path, driver: DriverState, now: Mapping[str, str], *, purpose: Purpose
) -> None:
    kept = driver.fingerprints
    if not _evaluated(driver, purpose):  # nothing that could be compared
        now = {n: v for n, v in now.items() if not of_evaluation(n, purpose=purpose)}
    if not kept:
        logger.warning(
            "%s was made by a version that kept no fingerprints: nobody knows whether data,"
            " tokenizer, checks and judge prompt are as they were", folder,
        )  # fmt: skip
    elif unknown := sorted(now.keys() - kept.keys()):
        logger.warning(
            "%s was made by a version that kept no fingerprint of %s: nobody knows whether that is"
            " as it was", folder, ", ".join(unknown),
        )  # fmt: skip
