"""What herl writes in a run's folder, by name: nothing else in it is ever removed.

A folder is a run if it holds `herl_run.json`, which only herl writes. Whatever a user keeps beside
herl's files stays, under `run.overwrite` and `run.resume` too. Folders called `.NAME.partial` are
herl's with all that is in them: they hold what a killed process had not published yet.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

LOCK_FILE = "run.lock"
"""In a run's folder, locked by the process that writes there (`run.lock`)."""
RUN_FILE = "herl_run.json"
"""In a run's folder: which command it is of, package versions, fingerprints of what was read."""
EXPORT_FILE = "herl_export.json"
"""In an exported policy: the names of its files (`models.hf_folder`)."""
TEMPLATES = "additional_chat_templates"
"""In a model's folder: the folder of its named chat templates."""
TRAJECTORIES = "trajectories.jsonl"
"""In the folder of a run of `herl improve`, as the next."""
SAMPLES = "best_of_n.jsonl"
EVALUATED = "eval.json"
"""In the folder of a run of `herl eval`."""
JUDGE_SPENT = "judge_spent.json"
"""What the judge has cost since the run's first start (`rubrics.budget`)."""
TRACKERS = "trackers.json"
"""Ids of the run in its experiment trackers (`observability.trackers`)."""
PROVENANCE = "provenance.json"
"""Every start of the run: when, where, with which code and command (`run.provenance`)."""
PLAN = "plan.json"
"""What `herl plan` counts for the run (`plan.record`)."""
SOURCE_DIFF = re.compile(r"source(?:_[1-9][0-9]*)?\.diff")
"""What the code of a start has that its commit has not."""
MANIFEST = "manifest.json"
"""In a checkpoint: its files, with size and hash (`files.manifest`)."""
DRIVER = "driver.json"
"""In a checkpoint: the driver's part (`run.checkpoints`)."""
LOCK_BEGIN = b"process "
"""What a lock that was ever taken begins with."""

_MADE_BY = "herl_megatron"
_RESULTS = (
    "metrics.jsonl", "summary.json", "learning_curve.png", EVALUATED, "improve.json", TRAJECTORIES,
    SAMPLES,
)  # fmt: skip
_WRITTEN_WHOLE = (  # by way of NAME.tmp
    "config.yaml", RUN_FILE, JUDGE_SPENT, TRACKERS, PROVENANCE, PLAN, *_RESULTS,
)  # fmt: skip
_FILES = {LOCK_FILE, "run.log", *_WRITTEN_WHOLE, *(f"{name}.tmp" for name in _WRITTEN_WHOLE)}
_FOLDERS = ("checkpoints", "rollouts", "tensorboard", "policy", ".policy.partial")
_NUMBER = "(?:[0-9]{6}|[1-9][0-9]{6,})"  # as f"{number:06d}" writes it
ROLLOUTS = re.compile(rf"(?:(?P<kind>step|eval)_(?P<number>{_NUMBER})|unfinished|eval)\.jsonl")
"""Files of `rollouts/`: step_N is written in step N, from 0, eval_N after N steps."""
GROUPS = re.compile(rf"step_(?P<number>{_NUMBER})\.groups\.gz")
"""Beside them with `train.keep_groups`: a step's groups with all that training takes of them."""
_BOARD = re.compile(r"events\.out\.tfevents\..+")
STEP = re.compile(f"step_({_NUMBER})")
"""A published checkpoint; under any other name, such as a copy set aside, it is none."""
UNPUBLISHED_STEP = re.compile(rf"\.step_{_NUMBER}\.partial")
"""A checkpoint that is being written, or whose run was killed meanwhile."""
_OF_RANKS = re.compile(r"__[0-9]+_[0-9]+\.distcp|\.metadata|common\.pt|metadata\.json")


def source_diff(number: int) -> str:
    """Name of the n-th file of the kind `SOURCE_DIFF`, from 1."""
    return "source.diff" if number == 1 else f"source_{number}.diff"


def is_run(path: Path) -> bool:
    """Whether herl made this folder."""
    return bool(read_run_file(path))


def read_run_file(path: Path) -> dict[str, Any]:
    """`herl_run.json` of the folder; empty where there is none, or it is not herl's.

    Raises:
        ValueError: it is there and cannot be read.
    """
    try:
        found = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except PermissionError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("made_by") == _MADE_BY else {}


def write_run_file(path: Path, content: Mapping[str, Any]) -> None:
    """Make the folder a run; the file appears whole or not at all."""
    temporary = path / f"{RUN_FILE}.tmp"
    text = json.dumps({"made_by": _MADE_BY} | dict(content), indent=1, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path / RUN_FILE)


def is_source_diff(file: Path) -> bool:
    """Whether it has the name of one, be it not written whole."""
    return bool(SOURCE_DIFF.fullmatch(file.name.removesuffix(".tmp")))


def is_unused(path: Path) -> bool:
    """Whether the folder holds nothing, or what a start leaves that is killed at once."""
    allowed = {LOCK_FILE, f"{RUN_FILE}.tmp"}
    names = set(os.listdir(path))
    return names <= allowed and (LOCK_FILE not in names or is_own_lock(path / LOCK_FILE))


def is_own_lock(file: Path) -> bool:
    """Whether a file is a lock that herl made: a regular file that is empty or names a process."""
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as opened:
        begin = opened.read(len(LOCK_BEGIN))
    return begin in (b"", LOCK_BEGIN)


def looks_like_a_run(path: Path) -> bool:
    """`is_run`, or a run of a version that did not write `herl_run.json`."""
    if os.path.isfile(path / RUN_FILE) and is_run(path):
        return True
    if not os.path.isfile(path / "config.yaml"):
        return False
    return os.path.isfile(path / LOCK_FILE) or bool(checkpoint_folders(path))


def has_results(path: Path) -> bool:
    """Whether there is more than what a run writes before its first number."""
    for name in _RESULTS:
        if (path / name).is_file() and (path / name).stat().st_size:
            return True
    return bool(set(_tree(path / "policy"))) or any(
        ROLLOUTS.fullmatch(file.name) for file in (path / "rollouts").glob("*")
    )


def checkpoint_folders(run: Path) -> list[Path]:
    """Published checkpoints of a run's folder, newest first; damaged ones included.

    A folder under any other name, such as a copy that somebody set aside, is none.
    """
    found = [
        (int(match[1]), path)
        for path in (run / "checkpoints").glob("step_*")
        if (match := STEP.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def own_files(run: Path) -> Iterator[Path]:
    """Every file that herl wrote in the run's folder, the lock too; no link but `latest`.

    What says that the others are herl's (`herl_export.json`, a checkpoint's manifest) comes after
    them, so that whoever is killed while removing them can go on.
    """
    yield from (run / name for name in sorted(_FILES) if _is_file(run / name))
    top = sorted(run.iterdir()) if run.is_dir() else []
    yield from (file for file in top if is_source_diff(file) and _is_file(file))
    yield from (file for file in _files_of(run / "tensorboard") if _BOARD.fullmatch(file.name))
    for file in _files_of(run / "rollouts"):
        name = file.name.removesuffix(".tmp")
        if ROLLOUTS.fullmatch(name) or GROUPS.fullmatch(name):
            yield file
    yield from own_policy_files(run / "policy")
    yield from _tree(run / ".policy.partial")
    parent = run / "checkpoints"
    if parent.is_symlink() or not parent.is_dir():
        return
    for folder in sorted(parent.iterdir()):
        if folder.name in ("latest", ".latest.tmp") and folder.is_symlink():
            yield folder
        elif UNPUBLISHED_STEP.fullmatch(folder.name):
            yield from _tree(folder)
        elif STEP.fullmatch(folder.name):
            yield from own_checkpoint_files(folder)


def own_policy_files(policy: Path) -> list[Path]:
    """The files of an exported policy; none of one that is a link."""
    names = _names_in(policy / EXPORT_FILE)
    if policy.is_symlink() or names is None:
        return []
    found = sorted(name for name in names if _in_policy(name) and name != EXPORT_FILE)
    files = [policy / name for name in (*found, EXPORT_FILE)]
    return [file for file in files if _is_file(file) and not file.parent.is_symlink()]


def _in_policy(name: str) -> bool:
    """Whether an export writes files of such a path."""
    folder, _, file = name.rpartition(os.sep)
    return folder in ("", TEMPLATES) and file not in ("", os.curdir, os.pardir)


def own_checkpoint_files(step: Path) -> list[Path]:
    """The files of a checkpoint: those of its manifest, and what one without it is known by."""
    names = set(_names_in(step / MANIFEST) or ())
    found = []
    for file in sorted(_tree(step)):
        name = str(file.relative_to(step))
        ranks = file.parent == step / "trainer" and _OF_RANKS.fullmatch(file.name)
        if name in names or name == DRIVER or ranks:
            found.append(file)
    return [*found, *filter(_is_file, [step / MANIFEST])]


def foreign_files(run: Path, *, checkpoints: bool) -> list[Path]:
    """Files that herl did not write where it publishes folders as a whole: the policy and, if asked
    for, `checkpoints`. A new one could not take their place without them."""
    policy = run / "policy"
    found = sorted(set(_tree(policy)) - set(own_policy_files(policy)))
    if policy.is_file():
        found.append(policy)
    if checkpoints and not (run / "checkpoints").is_symlink():
        for step in checkpoint_folders(run):
            found += sorted(set(_tree(step)) - set(own_checkpoint_files(step)))
    return found


def misplaced(run: Path, *, may_be_links: Iterable[str]) -> list[Path]:
    """What stands under herl's names and is of another kind than herl makes: a link, a folder in
    place of a file, a file in place of a folder.

    may_be_links: folders that a user may have on another disk.
    """
    found = []
    for name in sorted(_FILES):
        file = run / name
        if os.path.lexists(file) and not _is_file(file):
            found.append(file)
    for name in _FOLDERS:
        folder = run / name
        linked = folder.is_symlink() and name not in may_be_links
        if linked or (os.path.lexists(folder) and not folder.is_dir()):
            found.append(folder)
    if os.path.lexists(run / LOCK_FILE) and not is_own_lock(run / LOCK_FILE):
        found.append(run / LOCK_FILE)
    return found


def _names_in(file: Path) -> list[str] | None:
    """The names under `files` of a list that herl wrote; None where it is not one."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list | dict) else None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _files_of(folder: Path) -> list[Path]:
    """Files right in the folder, none where it is a link or no folder."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _is_file(path))


def _tree(folder: Path) -> Iterator[Path]:
    """Everything below a folder but folders; links are not followed."""
    if folder.is_symlink():
        yield folder
        return
    for parent, folders, files in os.walk(folder):
        for name in files + [name for name in folders if (Path(parent) / name).is_symlink()]:
            yield Path(parent) / name
