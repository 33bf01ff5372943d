"""Where a run writes, and whether it may."""

from __future__ import annotations

import re
from pathlib import Path

from herl_megatron.config.schema import Config

LOCK_FILE = "run.lock"
"""In a run's folder, locked by the process that writes there (`observability.run_lock`)."""
IMPROVED = "trajectories.jsonl"
"""In the folder of a run of `herl improve`."""
EVALUATED = "eval.json"
"""In the folder of a run of `herl eval`."""
_STEP = re.compile(r"step_\d{6,}")
_STARTING_FILES = {"config.yaml", "metrics.jsonl", "run.log", "tensorboard", LOCK_FILE}


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


def checkpoint_folders(run: Path) -> list[Path]:
    """Published checkpoints of a run's folder, newest first; damaged ones included.

    A folder under any other name, such as a copy that somebody set aside, is none.
    """
    found = (run / "checkpoints").glob("step_*")
    return sorted((path for path in found if _STEP.fullmatch(path.name)), reverse=True)


def folder_problem(config: Config) -> str | None:
    """Why the run's folder cannot be used, with the fix; None if it can."""
    path = run_path(config)
    if config.run.resume and config.run.overwrite:
        return "run.resume and run.overwrite are both true: continue the run, or replace it?"
    if not path.exists():
        return None
    if not path.is_dir():
        return f"run.dir/run.name: {path} is a file; choose another run.name"
    if all(item.name == LOCK_FILE for item in path.iterdir()):
        return None
    if not (path / "config.yaml").is_file():
        return (
            f"run.dir/run.name: {path} exists and is not a run (no config.yaml), so it is never"
            " deleted; choose another run.name"
        )
    if config.run.resume:
        if checkpoint_folders(path):
            return None
        if (path / EVALUATED).exists():
            return (
                f"run.resume is true, but {path} is a run of `herl eval`, which would be deleted;"
                " choose another run.name"
            )
        if command := _trained_by(path):
            return (
                f"run.resume is true, but {path} is a run of `herl {command}`, which cannot be"
                f" resumed and would be deleted; choose another run.name (and model.path="
                f"{path}/policy to go on from what it learnt)"
            )
        if (path / "summary.json").exists():
            return (
                f"run.resume is true, but {path} is a finished run without a checkpoint; choose"
                " another run.name"
            )
        # Killed before its first checkpoint: it starts again.
    elif not config.run.overwrite and _has_results(path):
        resume = ", run.resume=true to continue it" if checkpoint_folders(path) else ""
        return (
            f"run.dir/run.name: {path} exists; choose another run.name{resume}, or set"
            " run.overwrite=true to delete and replace it"
        )
    for key, value in _inputs(config).items():
        if value and path.resolve() in Path(value).resolve().parents:
            return (
                f"{key}: {value} lies in {path}, which a new start would delete; choose"
                " another run.name"
            )
    return None


def _trained_by(path: Path) -> str:
    """`sft` or `dpo` where that command wrote the run's metrics, else the empty string."""
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        return ""
    with metrics.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    return next((name for name in ("sft", "dpo") if f'"{name}/' in first), "")


def _has_results(path: Path) -> bool:
    """Whether there is anything to keep: more than what a run writes before its first number."""
    metrics = path / "metrics.jsonl"
    names = {item.name for item in path.iterdir()}
    return not names <= _STARTING_FILES or (metrics.exists() and metrics.stat().st_size > 0)


def _inputs(config: Config) -> dict[str, str]:
    return {
        "model.path": config.model.path,
        "model.megatron_path": config.model.megatron_path,
        "data.train": config.data.train,
        "data.eval": config.data.eval,
        "sft.data": config.sft.data,
        "dpo.data": config.dpo.data,
    }
