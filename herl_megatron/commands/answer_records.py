"""Own answers with their rewards: of runs, of rollout files, and of what `herl score` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.data.responses import ResponseRow, load_responses
from herl_megatron.files.os_errors import absent
from herl_megatron.files.strict_json import open_lines
from herl_megatron.report.records import Record, parse_line, read_records

_HELD_OUT = re.compile(r"eval_\d+\.jsonl").fullmatch
"""Evaluations of a training run, by step."""


def files_of(sources: Sequence[Path]) -> list[Path]:
    """Files of answers: those named, and of the runs named the rollouts of all training steps, or
    what `herl eval` sampled. Evaluations within a training run are held out and never taken.

    Raises:
        ValueError: neither a file nor a run with rollouts.
    """
    files: list[Path] = []
    for source in sources:
        if not absent(source, "file"):
            files.append(source)
            continue
        rollouts = source / "rollouts"
        found = sorted(rollouts.glob("step_*.jsonl")) or [
            path for path in sorted(rollouts.glob("eval*.jsonl")) if not _HELD_OUT(path.name)
        ]
        if not found:
            raise ValueError(
                f"{source} is no rollout file and no run with rollouts/step_*.jsonl or, of"
                " `herl eval`, rollouts/eval.jsonl"
            )
        files += found
    return files


def read_answers(files: Sequence[Path], *, rows: Path | None) -> Iterator[tuple[str, Record]]:
    """(`file:line`, a record as a rollout file has it) of every line of every file.

    rows: the rows that `herl score` scored, which have the texts; its output is told by its lines.

    Raises:
        ValueError: a line that is neither, an output of `herl score` without rows or of other rows.
    """
    scored = [file for file in files if _is_scored(file)]
    if scored and rows is None:
        raise ValueError(
            f"{scored[0]} is what `herl score` wrote and has no texts: name the rows that were"
            " scored with --rows FILE"
        )
    if rows is not None and not scored:
        raise ValueError(f"--rows {rows} is for what `herl score` wrote; none of the files is that")
    texts = {row.prompt.id: row for row in load_responses(str(rows))} if rows is not None else {}
    for file in files:
        if file in scored:
            yield from _scored_answers(file, texts, str(rows))
            continue
        for number, record in enumerate(read_records(file, answers_only=True), start=1):
            yield f"{file}:{number}", record


def read_rewards(file: Path) -> Iterator[tuple[str, str, list[float | None]]]:
    """(`file:line`, id, the reward of each response) of the lines of `herl score`; None: unscored.

    Raises:
        ValueError: a line that is not of `herl score`, with file and line.
    """
    if problem := absent(file, "file"):
        raise ValueError(f"{file}: there is {problem}")
    with open_lines(str(file)) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}:{number}"
            record = _object(line, where)
            entries = record.get("responses", [record])
            if "made_from" not in record or not isinstance(entries, list):
                raise ValueError(f"{where} is no line of `herl score`")
            yield where, str(record.get("id")), [_reward(entry, where) for entry in entries]


def _scored_answers(
    file: Path, rows: Mapping[str, ResponseRow], path: str
) -> Iterator[tuple[str, Record]]:
    for where, name, rewards in read_rewards(file):
        row = rows.get(name)
        if row is None or len(row.texts) != len(rewards):
            has = "has no such row" if row is None else f"has {len(row.texts)} responses"
            raise ValueError(
                f"{where} has {len(rewards)} rewards of the row {name!r}, and {path} {has}: name"
                " the rows that were scored"
            )
        prompt = row.prompt
        yield (
            where,
            {
                "prompt_id": prompt.id,
                "source": prompt.source,
                "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
                # Whether a response was cut is not known there.
                "rollouts": [
                    {"text": text, "reward": reward, "finish_reason": "stop"}
                    for text, reward in zip(row.texts, rewards, strict=True)
                ],
            },
        )


def _is_scored(file: Path) -> bool:
    if absent(file, "file"):
        return False  # whoever reads it says so
    with open_lines(str(file)) as lines:
        first = next(iter(lines), "")
    try:
        return "made_from" in _object(first, str(file))
    except ValueError:
        return False


def _object(line: str, where: str) -> dict[str, Any]:
    record = parse_line(line, where)
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: every line must be one JSON object")
    return dict(record)


def _reward(entry: object, where: str) -> float | None:
    reward = entry.get("reward") if isinstance(entry, Mapping) else ""
    if reward is None:
        return None
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise ValueError(f"{where} is no line of `herl score`: its reward is {reward!r:.40}")
    return float(reward)
