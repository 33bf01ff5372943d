"""Where a run writes, and whether it may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from herl_megatron.config.hooks import is_hook
from herl_megatron.config.load import ConfigError
from herl_megatron.config.purpose import RESUMES, Purpose
from herl_megatron.config.schema import Config
from herl_megatron.files.run_files import (
    checkpoint_folders,
    foreign_files,
    has_results,
    is_run,
    is_unused,
    looks_like_a_run,
    misplaced,
    own_files,
    read_run_file,
)

Start = Literal["new", "resume", "replace", "aside"]
"""How a run begins: in a folder without results; from what is there; after removing herl's files
of an earlier run; after moving an earlier run without a checkpoint to `NAME.before-N`."""
_LONGEST_NAME = 240
"""Bytes of a part of a run's name: file systems take 255, and `.before-N` has to fit too."""


def run_path(config: Config) -> Path:
    """The folder of this run."""
    return Path(config.run.dir) / config.run.name


def on_any_node(config: Config) -> Config:
    """The same with absolute paths of the model: workers run in the folder that Ray was started
    in, which need not be the driver's."""
    model = config.model
    megatron_path = str(Path(model.megatron_path).resolve()) if model.megatron_path else ""
    found = {"path": str(Path(model.path).resolve()), "megatron_path": megatron_path}
    return config.model_copy(update={"model": model.model_copy(update=found)})


def plan_start(config: Config, *, purpose: Purpose) -> Start:
    """How `herl PURPOSE` begins in the run's folder; looks only, and changes nothing.

    Raises:
        ConfigError: it cannot, with the fix.
        ValueError: what says that the folder is herl's cannot be read.
    """
    start, problems = _plan(config, purpose)
    if problems:
        raise ConfigError(problems)
    return start


def aside(path: Path) -> Path:
    """Where an earlier run goes that a new one would have to replace: the first free name."""
    number = 1
    while os.path.lexists(found := path.with_name(f"{path.name}.before-{number}")):
        number += 1
    return found


def _plan(config: Config, purpose: Purpose) -> tuple[Start, list[str]]:
    run = config.run
    if problems := [*_folder_problems(run.dir), *_name_problems(run.name)]:
        return "new", problems
    if run.resume and run.overwrite:
        both = "run.resume and run.overwrite are both true: continue the run, or replace it?"
        return "new", [both]
    path = run_path(config)
    if problem := _place_problem(path):
        return "new", [problem]
    if not path.exists() or is_unused(path):
        return "new", []
    start, problem = _use(path, config, purpose)
    problem = (
        _inner_problem(path)
        or problem
        or _in_the_way(path, start)
        or _input_problem(path, config, start)
    )
    return start, [problem] if problem else []


def _folder_problems(folder: str) -> Iterator[str]:
    if not folder.strip():
        yield "run.dir is empty; name the parent folder of all runs, `.` for the working folder"
    elif not folder.isprintable():
        yield f"run.dir is {folder!r}, with characters that cannot be seen; name another folder"
    elif any(len(part.encode()) > _LONGEST_NAME for part in Path(folder).parts):
        yield f"run.dir has a name of more than {_LONGEST_NAME} bytes, {folder!r:.60}; shorten it"


def _name_problems(name: str) -> Iterator[str]:
    """Names that are empty (a variable that is not set), or lead elsewhere than below `run.dir`."""
    fix = "give the run a name of its own, such as run.name=first"
    if not name.strip():
        yield f"run.name is {name!r}, so its folder would be run.dir itself; {fix}"
        return
    if Path(name).is_absolute():
        yield f"run.name is {name!r}, an absolute path; put the folder into run.dir, and {fix}"
        return
    parts = name.split("/")
    if any(part in ("", ".", "..") or part != part.strip() for part in parts):
        yield (
            f"run.name is {name!r}: every part of it must be a plain name, without '.', '..', an"
            f" empty part or blanks at its ends; {fix}"
        )
    elif not name.isprintable():
        yield f"run.name is {name!r}, with characters that cannot be seen; {fix}"
    elif any(len(part.encode()) > _LONGEST_NAME for part in parts):
        yield f"run.name is {name!r:.60}, more than {_LONGEST_NAME} bytes; {fix}"


def _place_problem(path: Path) -> str:
    """Why no run may be at `path`, whatever it holds, or the empty string."""
    where = f"run.dir/run.name: {path}"
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # too long in all, or below a folder that may not be entered
        return f"{where}: {error.strerror}; choose another place"
    if os.path.lexists(path) and not path.is_dir():
        what = "a link to nothing" if path.is_symlink() else "a file"
        return f"{where} is {what}; choose another run.name"
    for parent in dict.fromkeys((*Path(os.path.abspath(path)).parents, *path.resolve().parents)):
        if os.path.lexists(parent) and not parent.is_dir():
            what = "leads to nothing" if parent.is_symlink() else "is a file"
            return f"{where} lies below {parent}, which {what}; choose another place"
        if looks_like_a_run(parent):
            return f"{where} lies in another run, {parent}; choose another place"
    return ""


def _inner_problem(path: Path) -> str:
    for inner in _folders_below(path):
        if looks_like_a_run(inner):
            return f"run.dir/run.name: {path} contains another run, {inner}; choose another name"
    return ""


def _folders_below(path: Path) -> Iterator[Path]:
    for parent, folders, _files in os.walk(path):
        for name in folders:
            yield Path(parent) / name


def _use(path: Path, config: Config, purpose: Purpose) -> tuple[Start, str]:
    """How a folder with something in it is used, and why it cannot be."""
    run = config.run
    if not is_run(path):
        if purpose == "train" and run.resume and checkpoint_folders(path):
            return "resume", ""  # of an earlier version; `find_checkpoint` looks at it
        return "new", (
            f"run.dir/run.name: {path} exists and is not a run that this version of herl made (no"
            " herl_run.json), so it is never deleted; choose another run.name"
        )
    if run.overwrite:
        return "replace", ""
    if run.resume:
        return _resumed(path, purpose)
    if not has_results(path) and not checkpoint_folders(path):
        return "new", ""  # killed before its first number, or never begun
    resume = ", run.resume=true to continue it" if _goes_on(path, purpose) else ""
    return "new", (
        f"run.dir/run.name: {path} exists; choose another run.name{resume}, or set"
        " run.overwrite=true to delete and replace it"
    )


def _goes_on(path: Path, purpose: Purpose) -> bool:
    if purpose not in RESUMES or read_run_file(path).get("command") != purpose:
        return False
    return purpose == "improve" or bool(checkpoint_folders(path))


def _resumed(path: Path, purpose: Purpose) -> tuple[Start, str]:
    """As `_use`, with `run.resume`."""
    command = read_run_file(path).get("command")
    if purpose not in RESUMES:
        return "new", ""  # `config.validate` refuses it
    if command != purpose:
        kind = f"a run of `herl {command}`" if command else "no run whose command is known"
        policy = path / "policy"
        instead = f" (and model.path={policy} to go on from what it learnt)"
        return "new", (
            f"run.resume is true, but {path} is {kind}, which `herl {purpose}` cannot go on with;"
            f" choose another run.name{instead if policy.is_dir() else ''}"
        )
    if purpose == "improve" or checkpoint_folders(path):
        return "resume", ""
    checkpoints = path / "checkpoints"
    if checkpoints.is_symlink() and not checkpoints.exists():
        return "new", (
            f"run.resume is true, but {checkpoints} leads to {os.readlink(checkpoints)}, which is"
            " not there: is a disk not mounted? Bring it back, or choose another run.name"
        )
    if (path / "summary.json").exists():
        return "new", (
            f"run.resume is true, but {path} is a finished run without a checkpoint; choose another"
            " run.name"
        )
    if not has_results(path):
        return "new", ""
    if path.is_symlink():
        return "aside", (
            f"run.resume is true, but {path} holds results without a checkpoint and is a link, so"
            " they cannot be moved aside; move them yourself, or choose another run.name"
        )
    return "aside", ""


def _in_the_way(path: Path, start: Start) -> str:
    """What stands under a name that herl would write or remove, and must not."""
    if start == "aside":
        return ""
    on_another_disk = () if start == "replace" else ("checkpoints", "rollouts", "tensorboard")
    found = misplaced(path, may_be_links=on_another_disk)
    if not found and is_run(path):  # a policy of an earlier version is moved, see `take_back`
        found = foreign_files(path, checkpoints=start == "replace")
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    link = " (a link)" if found[0].is_symlink() else ""
    return (
        f"run.dir/run.name: {found[0]}{link}{more} stands where herl would write anew, and herl did"
        " not make it; move it elsewhere, or choose another run.name"
    )


def _input_problem(path: Path, config: Config, start: Start) -> str:
    """An input that would be removed, or moved from under the run."""
    if start not in ("replace", "aside"):
        return ""
    gone = {path.resolve()} if start == "aside" else {file.resolve() for file in own_files(path)}
    gone |= {parent for file in gone for parent in file.parents} if start == "replace" else set()
    gone -= set(path.resolve().parents) | ({path.resolve()} if start == "replace" else set())
    for key, place in _inputs(config):
        if gone & {place, *place.parents}:
            return (
                f"{key}: {place} lies in {path}, which a new start would delete or move; choose"
                " another run.name"
            )
    return ""


def _groups(start: str) -> str:
    """Where the groups of `train.groups_from` lie: in the folder of a run, or the file itself."""
    return str(Path(start) / "rollouts") if start and Path(start).is_dir() else start


def _inputs(config: Config) -> Iterator[tuple[str, Path]]:
    named = {
        "model.path": config.model.path,
        "model.megatron_path": config.model.megatron_path,
        "data.train": config.data.train,
        "sft.data": config.sft.data,
        "dpo.data": config.dpo.data,
        "judge.prompt": config.judge.prompt,
        "judge.grader_prompt": config.judge.grader_prompt,
        "hindsight.prompt_file": config.hindsight.prompt_file,
        "train.groups_from": _groups(config.train.groups_from),
    }
    yield from ((key, Path(value).resolve()) for key, value in named.items() if value)
    yield from (("data.eval", Path(value).resolve()) for value in config.data.eval_files if value)
    modules = [("scoring.check_modules", module) for module in config.scoring.check_modules]
    for key, name in (
        ("algorithm.loss", config.algorithm.loss),
        ("algorithm.advantage", config.algorithm.advantage),
        ("scoring.group_reward", config.scoring.group_reward),
        ("hindsight.method", config.hindsight.method),
        ("rollout.function", config.rollout.function),
    ):
        modules += [(key, name.partition(":")[0])] if is_hook(name) else []
    for key, module in modules:  # where a user's own are found
        place = Path.cwd() / module.replace(".", "/")
        for file in (place.with_name(f"{place.name}.py"), place):
            if file.exists():
                yield key, file.resolve()
