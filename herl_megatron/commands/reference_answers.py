"""The reference answers of canonical rows, with their rewards where somebody asks for them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from herl_megatron.blocking import run_blocking
from herl_megatron.commands.answer_records import read_rewards
from herl_megatron.commands.score.job import ScoreJob, run_score
from herl_megatron.commands.score.options import ScoringOptions, scoring_overrides
from herl_megatron.commands.score.output import check_replaceable, write_whole
from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.prepared import prepare
from herl_megatron.types import Prompt


@dataclass(frozen=True)
class ReferenceAnswer:
    """A row and its reference answer. reward: None where it has none, or nobody asked."""

    prompt: Prompt
    answer: str
    reward: float | None


def load_references(path: Path, counts: Counter[str]) -> list[Prompt]:
    """The rows that have a reference answer, each conversation once (its first row); `counts` gets
    how many have none or are repeated.

    Raises:
        ValueError: a bad row, or none has a reference answer.
    """
    seen: set[tuple[object, ...]] = set()
    found = []
    prompts = load_prompts(str(path))
    for prompt in prompts:
        if not (prompt.reference_answer or "").strip():
            counts["no reference answer"] += 1
        elif prompt.messages in seen:
            counts["repeated prompt"] += 1
        else:
            seen.add(prompt.messages)
            found.append(prompt)
    if not found:
        raise ValueError(
            f"{path}: none of the {len(prompts)} rows has a reference_answer (HIR-16K has none);"
            " use the policy's own answers"
        )
    return found


def without_rewards(prompts: Sequence[Prompt]) -> list[ReferenceAnswer]:
    """The references as they are."""
    return [ReferenceAnswer(prompt, prompt.reference_answer or "", None) for prompt in prompts]


def with_rewards(prompts: Sequence[Prompt], scores: Path) -> list[ReferenceAnswer]:
    """The references with the rewards of a file that `herl score` wrote of them.

    Raises:
        ValueError: a line that is not of `herl score`, or a row with several responses.
    """
    rewards: dict[str, float | None] = {}
    for where, name, values in read_rewards(scores):
        if len(values) != 1:
            raise ValueError(
                f"{where} has {len(values)} responses; reference answers are scored one a row"
            )
        rewards[name] = values[0]
    if not any(prompt.id in rewards for prompt in prompts):
        raise ValueError(f"{scores} has none of the rows; name what was scored of these rows")
    return [
        ReferenceAnswer(prompt, prompt.reference_answer or "", rewards.get(prompt.id))
        for prompt in prompts
    ]


def scored(
    prompts: Sequence[Prompt], out: Path, given: ScoringOptions, *, overwrite: bool
) -> list[ReferenceAnswer]:
    """The references with rewards of `herl score`'s own machinery.

    Beside `out` are kept `out.references.jsonl` (the rows with their answer as the response) and
    `out.scores.jsonl` (what `herl score` writes): called again it goes on where it was stopped, and
    with all of them scored it scores nothing.

    Raises:
        ValueError: other rows are there already, rows need a judge and there is none.
        RuntimeError: the judge stayed away; what was scored is kept.
    """
    rows = out.with_name(f"{out.name}.references.jsonl")
    scores = out.with_name(f"{out.name}.scores.jsonl")
    lines = (
        json.dumps(row_from_prompt(p) | {"response": p.reference_answer}, allow_nan=False)
        for p in prompts
    )
    content = "".join(f"{line}\n" for line in lines).encode()
    check_replaceable(rows)
    if rows.exists() and not overwrite and rows.read_bytes() != content:
        raise ValueError(
            f"{rows} is there already and has other rows; name another --out, or replace it with"
            " --overwrite"
        )
    config = prepare((), scoring_overrides(given), command="score")
    rows.parent.mkdir(parents=True, exist_ok=True)
    write_whole(rows, content)
    job = ScoreJob(rows, scores, "strict", config.scoring, config.judge)
    run_blocking(lambda: run_score(job))
    return with_rewards(prompts, scores)
