"""Trajectories and best-of-N samples as JSON lines, written one by one as they are complete.

What is on disk when a run dies is not drawn again: `TrajectoryLog` reads it back first, where
`check_continues` has nothing against it. Where a response has no score, its trajectory, or the
samples from it on, are drawn once more: the texts will be the same, and the judge may be back.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from herl_megatron.config.decides import differences
from herl_megatron.config.load import load_saved
from herl_megatron.config.schema import Config
from herl_megatron.config.schema.base import Decides
from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.files.run_files import SAMPLES, TRAJECTORIES, is_run, read_run_file
from herl_megatron.improvement.sampling import TrajectoryKey
from herl_megatron.improvement.trajectory import Attempt, Trajectory, accepted, best_attempt
from herl_megatron.observability.versions import version_changes
from herl_megatron.types import Prompt, Scored

logger = logging.getLogger(__name__)

_TRAJECTORY = TypeAdapter(Trajectory)
_ATTEMPT = TypeAdapter(Attempt)


def check_continues(folder: Path, config: Config, fingerprints: Mapping[str, str]) -> None:
    """Raise ValueError where the trajectories in `folder` are of another configuration, or of other
    rows, tokenizer, checks or judge prompt than `fingerprints` (`data.fingerprints`)."""
    path = folder / "config.yaml"
    if not is_run(folder) or not any(_whole_lines(folder / n) for n in (TRAJECTORIES, SAMPLES)):
        return  # nothing to go on from; `config.paths` says what becomes of the folder
    if not path.is_file():
        raise ValueError(
            f"run.resume is true, but {path} is gone, so nobody knows what the trajectories in"
            f" {folder} were made with; restore it, or choose another run.name"
        )
    earlier = load_saved(path).model_dump(mode="json")
    kinds = (Decides.NUMBERS, Decides.VERDICTS, Decides.EVALUATION)
    differing = [
        f"{key} is {now!r}, it was {then!r}"
        for key, now, then in differences(earlier, config, *kinds, purpose="improve")
    ]
    kept: Mapping[str, str] = read_run_file(folder).get("fingerprints", {})
    if kept:
        differing += [
            f"{name} is not what it was ({fingerprints[name]} now, {kept[name]} then)"
            for name in sorted(kept.keys() & fingerprints.keys())
            if kept[name] != fingerprints[name]
        ]
    if differing:
        raise ValueError(
            f"run.resume is true, but {path} is of other settings: {'; '.join(differing)};"
            " set them as they were, or choose another run.name"
        )
    versions = read_run_file(folder).get("versions", {})
    if versions and (changes := list(version_changes(versions))):
        logger.warning("other packages than when %s began: %s", folder, ", ".join(changes))


class _OtherPrompt(ValueError):
    """A line is of a prompt that is not in the data as it was."""


class TrajectoryLog:
    """Both files of a folder, open to append; use as a context manager.

    Attributes:
        trajectories: complete and wholly scored ones by prompt id and number.
        samples: best-of-N samples of each, without the trajectory's own first sample, in order, up
            to the first one without a score.

    Raises ValueError where a file holds something of other prompts than `prompts`, or a line that
    cannot be read; then neither file was changed.
    """

    def __init__(self, folder: Path, prompts: tuple[Prompt, ...]) -> None:
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self.trajectories: dict[TrajectoryKey, Trajectory] = {}
        self.samples: dict[TrajectoryKey, list[Attempt]] = {}
        # Both are read before either is changed.
        trajectories = self._read_trajectories(folder / TRAJECTORIES)
        samples = self._read_samples(folder / SAMPLES)
        _keep(folder / TRAJECTORIES, trajectories)
        _keep(folder / SAMPLES, samples)
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

    def _read_trajectories(self, path: Path) -> list[bytes]:
        """Take over what is wholly scored; returns the lines to keep."""
        kept = []
        for number, line in _whole_lines(path):
            with _named(path, number):
                record = json.loads(line)
                self._check(record, path)
                known = _TRAJECTORY.validate_python(record)
            if all(isinstance(attempt.score, Scored) for attempt in known.attempts):
                self.trajectories[known.prompt_id, known.index] = known
                kept.append(line)
        return kept

    def _read_samples(self, path: Path) -> list[bytes]:
        """Take over samples up to the first of a trajectory without a score; as above."""
        kept, unscored = [], set()
        for number, line in _whole_lines(path):
            with _named(path, number):
                record = json.loads(line)
                self._check(record, path)
                key = (record["prompt_id"], record["index"])
                sample = _ATTEMPT.validate_python(record["attempt"])
            if not isinstance(sample.score, Scored):
                unscored.add(key)
            if key not in unscored:
                self.samples.setdefault(key, []).append(sample)
                kept.append(line)
        return kept

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

    def add_sample(self, key: TrajectoryKey, sample: Attempt) -> None:
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
        own = (
            json.loads(json.dumps(self._of_prompt(name), allow_nan=False))
            if name in self._prompts
            else {}
        )
        # A line of samples has the id alone; its trajectory came first.
        if not own or any(record[key] != own[key] for key in own if key in record):
            raise _OtherPrompt(
                f"{path}: prompt {record['prompt_id']!r} is not in data.eval as it was when that"
                " file was written; give the same rows, or start over with run.resume=false"
                " run.overwrite=true"
            )


def _append(file: Any, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def _keep(path: Path, lines: Sequence[bytes]) -> None:
    """Write the file anew where it holds more than `lines`; it appears whole, by rename."""
    content = b"".join(lines)
    if not path.exists() or path.read_bytes() == content:
        return
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _whole_lines(path: Path) -> list[tuple[int, bytes]]:
    """Number and content of the file's lines; a kill can tear the last, which is left out."""
    if not path.exists():
        return []
    lines = enumerate(path.read_bytes().split(b"\n")[:-1], start=1)
    return [(number, line + b"\n") for number, line in lines if line]


@contextmanager
def _named(path: Path, number: int) -> Iterator[None]:
    """File and line in front of what is wrong with it."""
    try:
        yield
    except _OtherPrompt:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}:{number}: not a line of `herl improve` ({type(error).__name__}: {error});"
            " restore the file, or choose another run.name"
        ) from error
