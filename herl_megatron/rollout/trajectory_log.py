"""Trajectories and best-of-N samples as JSON lines, written one by one as they are complete.

What is on disk when a run dies is not drawn again: `TrajectoryLog` reads it back first, where
`check_continues` has nothing against it. Where a response has no score, its trajectory, or the
samples from it on, are drawn once more: the texts will be the same, and the judge may be back.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from herl_megatron.config.judge_rules import DECIDES_VERDICTS
from herl_megatron.config.load import load_config
from herl_megatron.config.paths import IMPROVED
from herl_megatron.config.schema import Config, JudgeConfig
from herl_megatron.data.rows import row_from_prompt
from herl_megatron.hindsight.trajectory import Attempt, Trajectory, accepted, best_attempt
from herl_megatron.rollout.improvement import Key
from herl_megatron.types import Prompt, Scored

TRAJECTORIES = IMPROVED
SAMPLES = "best_of_n.jsonl"

_DECIDES_NUMBERS = (
    "model", "data", "rollout", "hindsight", "eval", "improve", "scoring", "judge",
)  # fmt: skip
_MAY_DIFFER = {
    "data": {"train", "shuffle"},
    "rollout": {"replicas", "max_num_seqs", "timeout_s", "stall_timeout_s", "max_engine_restarts",
                "kv_cache_bytes", "gpu_memory_utilization"},
    "improve": {"best_of_n"},
    "scoring": {"workers", "timeout_s"},
    "judge": set(JudgeConfig.model_fields) - DECIDES_VERDICTS - {"model", "prompt"},
}  # fmt: skip
_TRAJECTORY = TypeAdapter(Trajectory)
_ATTEMPT = TypeAdapter(Attempt)


def check_continues(folder: Path, config: Config) -> None:
    """Raise ValueError where `herl improve` cannot go on in `folder`: it is another kind of run,
    whose results would be lost, or its trajectories are of another configuration."""
    path = folder / "config.yaml"
    if not path.is_file():
        return
    others = [n for n in ("policy", "checkpoints", "rollouts") if (folder / n).exists()]
    if others:
        raise ValueError(
            f"run.resume is true, but {folder} is no run of `herl improve`: it has"
            f" {', '.join(others)}; choose another run.name"
        )
    earlier, now = load_config(path).model_dump(), config.model_dump()
    differing = [
        f"{section}.{key} is {value!r}, it was {earlier[section][key]!r}"
        for section in _DECIDES_NUMBERS
        for key, value in now[section].items()
        if key not in _MAY_DIFFER.get(section, ()) and value != earlier[section][key]
    ]
    if differing:
        raise ValueError(
            f"run.resume is true, but {path} is of other settings: {'; '.join(differing)};"
            " set them as they were, or choose another run.name"
        )


class TrajectoryLog:
    """Both files of a folder, open to append; use as a context manager.

    Attributes:
        trajectories: complete and wholly scored ones by prompt id and number.
        samples: best-of-N samples of each, without the trajectory's own first sample, in order, up
            to the first one without a score.

    Raises ValueError where a file holds something of other prompts than `prompts`.
    """

    def __init__(self, folder: Path, prompts: tuple[Prompt, ...]) -> None:
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self.trajectories: dict[Key, Trajectory] = {}
        self.samples: dict[Key, list[Attempt]] = {}
        self._read_trajectories(folder / TRAJECTORIES)
        self._read_samples(folder / SAMPLES)
        self._trajectory_file = (folder / TRAJECTORIES).open("a", encoding="utf-8")
        self._sample_file = (folder / SAMPLES).open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._trajectory_file.close()
        self._sample_file.close()

    def _read_trajectories(self, path: Path) -> None:
        kept = []
        for line in (lines := _whole_lines(path)):
            self._check(line, path)
            known = _TRAJECTORY.validate_python(line)
            if all(isinstance(attempt.score, Scored) for attempt in known.attempts):
                self.trajectories[known.prompt_id, known.index] = known
                kept.append(line)
        _keep(path, kept, of=lines)

    def _read_samples(self, path: Path) -> None:
        kept, unscored = [], set()
        for line in (lines := _whole_lines(path)):
            self._check(line, path)
            key = (line["prompt_id"], line["index"])
            sample = _ATTEMPT.validate_python(line["attempt"])
            if not isinstance(sample.score, Scored):
                unscored.add(key)
            if key not in unscored:
                self.samples.setdefault(key, []).append(sample)
                kept.append(line)
        _keep(path, kept, of=lines)

    def add_trajectory(self, trajectory: Trajectory) -> None:
        """Keep a complete trajectory, with its prompt and what became of each attempt."""
        record = self._of_prompt(trajectory.prompt_id) | _TRAJECTORY.dump_python(
            trajectory, mode="json"
        )
        for number, attempt in enumerate(record["attempts"]):
            attempt["accepted"] = accepted(trajectory.attempts, number)
        record["best"] = best_attempt(trajectory.attempts)
        self.trajectories[trajectory.prompt_id, trajectory.index] = trajectory
        _append(self._trajectory_file, record)

    def add_sample(self, key: Key, sample: Attempt) -> None:
        """Keep a best-of-N sample of the trajectory `key`."""
        record = {"prompt_id": key[0], "index": key[1]}
        self.samples.setdefault(key, []).append(sample)
        _append(self._sample_file, record | {"attempt": _ATTEMPT.dump_python(sample, mode="json")})

    def _of_prompt(self, prompt_id: str) -> dict[str, Any]:
        prompt = self._prompts[prompt_id]
        return {
            "prompt_id": prompt_id,
            "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "criteria": row_from_prompt(prompt)["rubric"]["criteria"],
            "aggregation": prompt.rubric.aggregation,
        }

    def _check(self, record: dict[str, Any], path: Path) -> None:
        name = record["prompt_id"]
        own = json.loads(json.dumps(self._of_prompt(name))) if name in self._prompts else {}
        # A line of samples has the id alone; its trajectory came first.
        if not own or any(record[key] != own[key] for key in own if key in record):
            raise ValueError(
                f"{path}: prompt {record['prompt_id']!r} is not in data.eval as it was when that"
                " file was written; give the same rows, or start over with run.resume=false"
                " run.overwrite=true"
            )


def _append(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def _keep(path: Path, lines: list[dict[str, Any]], *, of: list[dict[str, Any]]) -> None:
    """Write the file anew where it holds more than `lines`; it appears whole, by rename."""
    if len(lines) == len(of):
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for line in lines:
            _append(file, line)
    os.replace(temporary, path)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, which is cut after its last whole line: a kill can tear the last."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.split(b"\n") if line]
