"""Preference pairs for `herl dpo` (`dpo.data`): the best own response against the worst, or the
reference answer against the own one. `herl pairs` and `herl data pairs` are one command.

    herl data pairs runs/quickstart/herl --out pairs.jsonl
    herl data pairs FILE.jsonl FILE.jsonl --margin 0.3 --revisions --out pairs.jsonl
    herl data pairs scores.jsonl --rows rows.jsonl --out pairs.jsonl
    herl data pairs runs/base --references data/rar/train.jsonl --out pairs.jsonl

Runs (their training rollouts, or of `herl eval` its samples), rollout files, or what `herl score`
wrote, with the rows that it scored in --rows. A response without a score makes no pair of best and
worst, nor does one that the length limit cut. A pair that occurs again is written once. What became
of the groups is printed.

With --references the chosen answer is the row's `reference_answer` and the rejected one the own
response of the lowest reward to the same messages. --margin then is the least difference of their
rewards, where both are scored; references are scored for it first, as by `herl score`, into
OUT.references.jsonl and OUT.scores.jsonl, or taken from --scores. Without --margin rewards do not
matter.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.commands.answer_records import files_of, read_answers
from herl_megatron.commands.made_rows import WhatBecame, run_maker
from herl_megatron.commands.reference_answers import (
    ReferenceAnswer,
    load_references,
    scored,
    with_rewards,
    without_rewards,
)
from herl_megatron.commands.score.options import add_scoring_arguments, scoring_options
from herl_megatron.data.own_answers import Asked, Record, by_prompt, prompt_text, worst_answer
from herl_megatron.data.preference_pairs import pair_from_group
from herl_megatron.types import Prompt

_MARGIN = 0.1
_MADE = "pairs"


def main(arguments: Sequence[str] | None = None, *, prog: str = "herl pairs") -> int:
    """Parse the arguments, write the pairs, say what became of the groups."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="RUN_OR_FILE")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    parser.add_argument(
        "--margin", type=float, help="least difference of the rewards (best and worst: 0.1)"
    )
    parser.add_argument("--revisions", action="store_true", help="a revision may be the chosen one")
    parser.add_argument("--rows", type=Path, help="what was scored, for files of `herl score`")
    parser.add_argument("--references", type=Path, metavar="ROWS", help="canonical rows")
    parser.add_argument("--scores", type=Path, help="rewards of the references, by `herl score`")
    add_scoring_arguments(parser)
    args = parser.parse_args(arguments)
    return run_maker(
        prog,
        args.out,
        lambda: _pairs(args),
        overwrite=args.overwrite,
        nothing="no group makes a pair",
    )


def _pairs(args: argparse.Namespace) -> tuple[list[dict[str, Any]], WhatBecame]:
    if args.margin is not None and not args.margin > 0:  # nan compares with nothing
        raise ValueError(f"--margin is {args.margin}; equal rewards prefer nothing: above 0")
    counts = WhatBecame()
    if args.references is None:
        if args.scores is not None:
            raise ValueError("--scores is for --references; own responses have their rewards")
        margin = _MARGIN if args.margin is None else args.margin
        records = read_answers(files_of(args.sources), rows=args.rows)
        made = best_and_worst(records, margin=margin, revisions=args.revisions, counts=counts)
        return list(made), counts
    if args.revisions:
        raise ValueError("--revisions is for the best and the worst; with --references the chosen"
                         " answer is the reference")  # fmt: skip
    if args.scores is not None and args.margin is None:
        raise ValueError("--scores changes nothing without --margin")
    own = by_prompt(read_answers(files_of(args.sources), rows=args.rows), revisions=False)
    found = {prompt_text(vars(m) for m in p.messages): p for p in _references(args, counts)}
    asked = [(one, found.get(prompt_text(one.record["messages"]))) for one in own]
    references = _rewarded(args, [prompt for _, prompt in asked if prompt is not None])
    return list(_against_references(asked, references, args.margin, counts)), counts


def best_and_worst(
    records: Iterable[tuple[str, Record]], *, margin: float, revisions: bool, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows as `herl dpo` reads them; `counts` gets what became of each group."""
    seen: set[tuple[str, str, str]] = set()
    for where, record in records:
        found = pair_from_group(record, margin=margin, revisions=revisions)
        if isinstance(found, str):
            counts[found] += 1
            continue
        key = (record["prompt_id"], *found)
        if key in seen:
            counts["seen before"] += 1
            continue
        seen.add(key)
        counts[_MADE] += 1
        yield _row(where, record, *found)  # runs of one name, other folders: other ids


def _references(args: argparse.Namespace, counts: Counter[str]) -> list[Prompt]:
    """Of all rows; how many have none is no news here, where most were never sampled."""
    ignored: Counter[str] = Counter()
    return load_references(args.references, ignored)


def _rewarded(args: argparse.Namespace, prompts: Sequence[Prompt]) -> dict[str, ReferenceAnswer]:
    """The references of the prompts that were sampled, by row id."""
    if args.margin is None or not prompts:
        references = without_rewards(prompts)
    elif args.scores is not None:
        references = with_rewards(prompts, args.scores)
    else:
        references = scored(prompts, args.out, scoring_options(args), overwrite=args.overwrite)
    return {reference.prompt.id: reference for reference in references}


def _against_references(
    asked: Iterable[tuple[Asked, Prompt | None]],
    references: dict[str, ReferenceAnswer],
    margin: float | None,
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:
    for one, prompt in asked:
        counts["repeated prompt: the worst of all its responses counts"] += one.repeats
        if prompt is None:
            counts["no reference answer"] += 1
            continue
        reference, rejected = references[prompt.id], worst_answer(one)
        problem = rejected if isinstance(rejected, str) else _unfit(reference, rejected, margin)
        if isinstance(rejected, str) or problem:
            counts[problem] += 1
            continue
        counts[_MADE] += 1
        yield _row(one.where, one.record, reference.answer, rejected["text"])


def _unfit(reference: ReferenceAnswer, rejected: Record, margin: float | None) -> str:
    """Why the two make no pair, or the empty string."""
    if reference.answer == rejected["text"]:
        return "empty or equal texts"
    if margin is None:
        return ""
    if reference.reward is None or rejected["reward"] is None:
        return "unscored"
    return "rewards too close" if reference.reward - rejected["reward"] < margin else ""


def _row(where: str, record: Record, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "id": where,
        "messages": record["messages"],
        "chosen": chosen,
        "rejected": rejected,
        "source": record.get("source", ""),
        "extra": {"prompt_id": record["prompt_id"]},
    }
