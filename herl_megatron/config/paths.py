"""Where a run writes, and whether it may."""

from __future__ import annotations

from pathlib import Path

from herl_megatron.config.schema import Config


def run_path(config: Config) -> Path:
    """The folder of this run."""
    return Path(config.run.dir) / config.run.name


def folder_problem(config: Config) -> str | None:
    """Why the run's folder cannot be used, with the fix; None if it can."""
    path = run_path(config)
    if not path.exists():
        return None
    if not path.is_dir():
        return f"run.dir/run.name: {path} is a file; choose another run.name"
    if not any(path.iterdir()):
        return None
    if not (path / "config.yaml").is_file():
        return (
            f"run.dir/run.name: {path} exists and is not a run (no config.yaml), so it is never"
            " deleted; choose another run.name"
        )
    if not config.run.overwrite:
        return (
            f"run.dir/run.name: {path} exists; choose another run.name, or set run.overwrite=true"
            " to delete and replace it"
        )
    for key, value in _inputs(config).items():
        if value and path.resolve() in Path(value).resolve().parents:
            return (
                f"{key}: {value} lies in {path}, which run.overwrite=true would delete; choose"
                " another run.name"
            )
    return None


def _inputs(config: Config) -> dict[str, str]:
    return {
        "model.path": config.model.path,
        "data.train": config.data.train,
        "data.eval": config.data.eval,
        "sft.data": config.sft.data,
    }
