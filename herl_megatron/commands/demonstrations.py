"""Rows for `herl sft` (`sft.data`): reference answers, or the best of the own samples.

    herl data sft --references data/rar/train.jsonl --out data/rar/sft.jsonl
    herl data sft --references data/rar/train.jsonl --min-reward 0.8 --judge URL
        --judge-model NAME --out data/rar/sft.jsonl
    herl data sft --best-of runs/base --min-reward 1 --out data/hir/sft.jsonl
    herl data sft --best-of scores.jsonl --rows rows.jsonl --out sft.jsonl

--best-of takes runs (their training rollouts, or of `herl eval` its samples), rollout files, and
what `herl score` wrote, with the rows that it scored in --rows. All samples of one prompt compete;
one without a score is never used, nor one that the length limit cut.

--min-reward leaves out what the rubric gives less. Reference answers are scored for it first, as by
`herl score`, into OUT.references.jsonl and OUT.scores.jsonl; started again it goes on there, and
another --min-reward scores nothing anew. --scores takes a file that was scored before.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.commands.answer_records import files_of, read_answers
from herl_megatron.commands.made_rows import WhatBecame, finite, run_maker
from herl_megatron.commands.reference_answers import (
    ReferenceAnswer,
    load_references,
    scored,
    with_rewards,
    without_rewards,
)
from herl_megatron.commands.score.options import add_scoring_arguments, scoring_options
from herl_megatron.data.own_answers import best_answer, by_prompt
from herl_megatron.types import Prompt

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, write the rows, say what became of everything that was read."""
    parser = argparse.ArgumentParser(
        prog="herl data sft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    answers = parser.add_mutually_exclusive_group(required=True)
    answers.add_argument("--references", type=Path, metavar="ROWS", help="canonical rows")
    answers.add_argument("--best-of", type=Path, nargs="+", metavar="RUN_OR_FILE")
    parser.add_argument("--rows", type=Path, help="what was scored, for files of `herl score`")
    parser.add_argument("--scores", type=Path, help="rewards of the references, by `herl score`")
    parser.add_argument("--min-reward", type=float, help="the least reward of an answer to learn")
    parser.add_argument("--revisions", action="store_true", help="a revision may be the best one")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    add_scoring_arguments(parser)
    args = parser.parse_args(arguments)
    return run_maker(
        "herl data sft",
        args.out,
        lambda: _rows(args),
        overwrite=args.overwrite,
        nothing="no answer makes a row",
    )


def _rows(args: argparse.Namespace) -> tuple[list[Row], WhatBecame]:
    finite("--min-reward", args.min_reward)
    if args.references is None:
        if args.scores is not None:
            raise ValueError("--scores is for --references; --best-of has rewards of its own")
        return _best(args)
    if args.rows is not None or args.revisions:
        raise ValueError("--rows and --revisions are for --best-of")
    if args.scores is not None and args.min_reward is None:
        raise ValueError("--scores changes nothing without --min-reward")
    counts = WhatBecame()
    prompts = load_references(args.references, counts)
    return list(_of_references(_with_rewards(args, prompts), args, counts)), counts


def _with_rewards(args: argparse.Namespace, prompts: Sequence[Prompt]) -> list[ReferenceAnswer]:
    if args.min_reward is None:
        return without_rewards(prompts)
    if args.scores is not None:
        return with_rewards(prompts, args.scores)
    return scored(prompts, args.out, scoring_options(args), overwrite=args.overwrite)


def _of_references(
    references: Sequence[ReferenceAnswer], args: argparse.Namespace, counts: Counter[str]
) -> Iterator[Row]:
    for reference in references:
        if args.min_reward is not None and reference.reward is None:
            counts["unscored"] += 1
        elif args.min_reward is not None and (reference.reward or 0.0) < args.min_reward:
            counts["below the reward"] += 1
        else:
            counts["rows"] += 1
            prompt = reference.prompt
            messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
            yield {
                "id": prompt.id,
                "messages": [*messages, {"role": "assistant", "content": reference.answer}],
                "source": prompt.source,
                "extra": _extra(prompt.id, "reference answer", reference.reward),
            }


def _best(args: argparse.Namespace) -> tuple[list[Row], WhatBecame]:
    counts, rows = WhatBecame(), []
    records = read_answers(files_of(args.best_of), rows=args.rows)
    for asked in by_prompt(records, revisions=args.revisions):
        counts["repeated prompt: its answers compete with the earlier ones"] += asked.repeats
        best = best_answer(asked, min_reward=args.min_reward)
        if isinstance(best, str):
            counts[best] += 1
            continue
        counts["rows"] += 1
        record = asked.record
        messages = [{"role": m["role"], "content": m["content"]} for m in record["messages"]]
        made_of = f"best of {len(asked.answers)}"
        row = {
            "id": asked.where,
            "messages": [*messages, {"role": "assistant", "content": best["text"]}],
            "source": record.get("source", ""),
            "extra": _extra(record["prompt_id"], made_of, best["reward"]),
        }
        rows.append(row)
    return rows, counts


def _extra(prompt_id: str, made_of: str, reward: float | None) -> dict[str, Any]:
    extra = {"prompt_id": prompt_id, "made_of": made_of}
    return extra if reward is None else {**extra, "reward": reward}
