"""A run's folder read back, and runs that differ by their seed alone put together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from herl_megatron.config.schema import Config, ModelConfig
from herl_megatron.config.upgrade import FIRST, VERSION, upgraded, version_problem
from herl_megatron.files.os_errors import absent
from herl_megatron.files.run_files import PLAN
from herl_megatron.files.strict_json import read_object
from herl_megatron.observability.evaluations import EVALUATION_CHANGED
from herl_megatron.run.provenance import read_starts

Series = Mapping[int, float]
"""One metric by step; NaN where the run logged that it had no number."""
_PATH_KEYS = ("model.path", "data.train", "data.eval", "sft.data", "dpo.data")
_PLANNED = {"sft": "sft.steps", "dpo": "dpo.steps", "improve": "improve.rounds"}
"""What a run of this kind was asked for; others for `train.steps`."""
AXIS = "axis/"
"""Derived metrics begin so that are drawn on the x axis instead of the steps."""
_EVALUATED = "eval/"
"""An evaluation's line of metrics has names that begin so; a training step's line has none."""
_NOT_SETUP = ("run.name", "run.dir", "run.overwrite", "run.seed")


@dataclass(frozen=True)
class ReportedRun:
    """One run as it lies on disk, finished or not.

    settings: the resolved configuration by dotted key. A key that the file lacks because the run
        is older than the key has its default.
    metrics: by name, then by step. A step logged twice (a resumed run) counts as logged last.
    summary: `summary.json`, None while the run has not ended well.
    starts: `provenance.json`, the earliest start first; empty for a run older than the file.
    plan: `plan.json`, None without one.
    """

    path: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, Series]
    summary: Mapping[str, Any] | None
    starts: Sequence[Mapping[str, Any]] = ()
    plan: Mapping[str, Any] | None = None

    @property
    def seed(self) -> int:
        """`run.seed`."""
        return int(self.settings["run.seed"])

    @property
    def kind(self) -> str:
        """`train`, `sft`, `dpo`, `improve` or `eval`, by what was logged."""
        for kind in _PLANNED:
            if any(name.startswith(f"{kind}/") for name in self.metrics):
                return kind
        only_eval = all(name.startswith(_EVALUATED) for name in self.metrics)
        return "eval" if only_eval and self.summary is None else "train"

    @property
    def steps(self) -> int:
        """Training steps logged so far."""
        # Of evaluations, derived ones pooled over steps, and axes, which go on to the end.
        not_steps = (_EVALUATED, "check/", AXIS)
        trained = (s for name, s in self.metrics.items() if not name.startswith(not_steps))
        return 1 + max((step for series in trained for step in series), default=-1)

    @property
    def planned_steps(self) -> int:
        """Steps that the configuration asks for; rounds of `herl improve`."""
        return int(self.settings[_PLANNED.get(self.kind, "train.steps")])

    def rollout_files(self) -> list[tuple[int, Path]]:
        """Rollouts of the training steps, in order."""
        found = sorted((self.path / "rollouts").glob("step_*.jsonl"))
        return [(int(path.stem.removeprefix("step_")), path) for path in found]


@dataclass(frozen=True)
class RunGroup:
    """Runs of one setup under different seeds, at least one."""

    label: str
    runs: tuple[ReportedRun, ...]


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest value over a group's runs, step by step."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def read_run(path: Path) -> ReportedRun:
    """Read a run's folder, also while it is being written.

    Raises:
        ValueError: no such folder, no run, nothing logged yet, or a broken line in the middle.
    """
    if problem := absent(path, "folder"):
        raise ValueError(f"{problem}: {path}")
    if not (path / "config.yaml").is_file():
        inside = sorted(p.parent.name for p in path.glob("*/config.yaml"))
        hint = f"; it holds the runs {', '.join(inside)}" if inside else ""
        raise ValueError(f"{path} is no run (it has no config.yaml){hint}")
    metrics = _read_metrics(path / "metrics.jsonl")
    if not metrics:
        raise ValueError(f"{path} has no steps yet: nothing is logged in metrics.jsonl")
    summary = path / "summary.json"
    return ReportedRun(
        path=path,
        settings=_read_settings(path / "config.yaml"),
        metrics=metrics,
        summary=_read_summary(summary) if summary.is_file() else None,
        starts=read_starts(path),
        plan=_read_plan(path / PLAN),
    )


def _read_plan(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not what `herl plan --json` prints: {error}") from error
    if not isinstance(found, dict) or not {"ranks", "engine", "gpu_bytes"} <= found.keys():
        raise ValueError(f"{file} is not what `herl plan --json` prints; remove it or make it anew")
    return found


def group_runs(runs: Sequence[ReportedRun]) -> list[RunGroup]:
    """Groups of runs that differ in `run.seed` and the paths that belong to it, nothing else.

    A repeat of a seed starts a group of its own, so that it is not counted as another seed.
    """
    groups: list[list[ReportedRun]] = []
    for run in runs:
        for group in groups:
            if _same_setup(group[0], run) and run.seed not in {other.seed for other in group}:
                group.append(run)
                break
        else:
            groups.append([run])
    labels = _labels(groups)
    return [
        RunGroup(label, tuple(sorted(group, key=lambda run: run.seed)))
        for label, group in zip(labels, groups, strict=True)
    ]


def spread(series: Sequence[Series]) -> Spread:
    """Mean and range over the runs, at the steps where every one of them has a number.

    A step that some run lacks is left out: a mean over a changing set of seeds would jump.
    """
    shared = [
        step
        for step in sorted(series[0])
        if all(math.isfinite(one.get(step, math.nan)) for one in series)
    ]
    columns = [[one[step] for one in series] for step in shared]
    return Spread(
        steps=tuple(shared),
        mean=tuple(sum(column) / len(column) for column in columns),
        low=tuple(min(column) for column in columns),
        high=tuple(max(column) for column in columns),
    )


def differing_settings(groups: Sequence[RunGroup]) -> dict[str, list[Any]]:
    """Configuration keys, with one value per group, in which the groups' first runs differ."""
    first = [group.runs[0] for group in groups]
    keys = sorted({key for run in first for key in run.settings} - set(_NOT_SETUP))
    shown: dict[str, list[Any]] = {}
    for key in keys:
        if any(not _same_value(key, first[0], run) for run in first[1:]):
            shown[key] = [run.settings.get(key) for run in first]
    return shown


def changed_settings(run: ReportedRun) -> dict[str, tuple[Any, Any]]:
    """Configuration keys that are not at their default: value and default, None for a key that this
    version does not know."""
    plain = dict(_flatten(Config(model=ModelConfig(path="")).model_dump(mode="json")))
    return {
        key: (value, plain.get(key))
        for key, value in run.settings.items()
        if value != plain.get(key)
    }


def _read_metrics(path: Path) -> dict[str, dict[int, float]]:
    metrics: dict[str, dict[int, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}; restore the file") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            values = json.loads(line)
            step = values.pop("step")
            _require_numbers(step, values)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break  # being written, or cut short by a kill
            raise ValueError(f"{path}:{number} is no line of metrics: {error}") from error
        if values.pop(EVALUATION_CHANGED, None):  # held-out numbers from before do not compare
            metrics = {name: s for name, s in metrics.items() if not name.startswith(_EVALUATED)}
        if any(name.startswith(_EVALUATED) for name in values):
            # What else it counts, such as engine restarts, is no training step's.
            values = {name: v for name, v in values.items() if name.startswith(_EVALUATED)}
        for name, value in values.items():
            metrics.setdefault(name, {})[step] = math.nan if value is None else float(value)
    return metrics


def _require_numbers(step: object, values: Mapping[str, object]) -> None:
    if not isinstance(step, int):
        raise ValueError(f"its step is {step!r:.40}, no whole number")
    for name, value in values.items():
        if not isinstance(value, int | float | None):
            raise ValueError(f"{name} is {value!r:.40}, no number")


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_object(path)
    seconds = summary.get("seconds") or {}
    if not isinstance(seconds, dict) or not all(
        isinstance(s, int | float) for s in seconds.values()
    ):
        raise ValueError(f"{path}: seconds is {seconds!r:.60}; it must be numbers by phase")
    return summary


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
        raise ValueError(f"{path} is no configuration of a run")
    if not isinstance(seed := values["run"].get("seed", 0), int):
        raise ValueError(f"{path}: run.seed is {seed!r:.40}; it must be a whole number")
    version = values.pop(VERSION, FIRST)
    try:
        if not version_problem(version):
            values = upgraded(values, version)
        values = Config.model_validate(values).model_dump(mode="json")
    except ValueError:
        pass  # written by another version: shown as it stands
    flat = dict(_flatten(values))
    counts = dict.fromkeys(("train.steps", *_PLANNED.values()), 0)
    return {"run.seed": 0, "run.name": path.parent.name} | counts | flat


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same_setup(a: ReportedRun, b: ReportedRun) -> bool:
    keys = {*a.settings, *b.settings} - set(_NOT_SETUP)
    return a.kind == b.kind and all(_same_value(key, a, b) for key in keys)


def _same_value(key: str, a: ReportedRun, b: ReportedRun) -> bool:
    """Equal, or paths that are equal once each run's own folder or seed is taken out of them."""
    one, two = a.settings.get(key), b.settings.get(key)
    if one == two:
        return True
    if key not in _PATH_KEYS or not one or not two:
        return False
    if key == "model.path" and a.settings.get("model.hub"):
        # One commit of one model, wherever each machine keeps it.
        return bool(a.settings["model.hub"] == b.settings.get("model.hub"))
    files, others = _files(one), _files(two)
    return any(
        [forget(path, a) for path in files] == [forget(path, b) for path in others]
        for forget in (_without_folder, _without_seed)
    )


def _files(value: str | Sequence[str]) -> Sequence[str]:
    """Of a key that names one or several."""
    return (value,) if isinstance(value, str) else value


def _without_folder(path: str, run: ReportedRun) -> str:
    folder = f"{str(run.settings.get('run.dir', '')).rstrip('/')}/"
    return path.removeprefix(folder) if path.startswith(folder) else path


def _without_seed(path: str, run: ReportedRun) -> str:
    """`runs/qs1/sft` of the run with seed 1 is `runs/qs{seed}/sft`; 11 is another number."""
    seed = str(run.seed)
    return re.sub(r"\d+", lambda number: "{seed}" if number[0] == seed else number[0], path)


def _labels(groups: Sequence[Sequence[ReportedRun]]) -> list[str]:
    """`run.name` where that tells the groups apart, else the first run's path."""
    names = [str(group[0].settings["run.name"]) for group in groups]
    labels = [
        name if names.count(name) == 1 else str(group[0].path)
        for name, group in zip(names, groups, strict=True)
    ]
    return [
        f"{label} ({len(group)} seeds)" if len(group) > 1 else label
        for label, group in zip(labels, groups, strict=True)
    ]
