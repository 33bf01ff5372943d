"""Preference pairs for `herl dpo` from a run's rollouts: each group's best and worst response.

    herl pairs runs/quickstart/herl --out pairs.jsonl
    herl pairs FILE.jsonl FILE.jsonl --margin 0.3 --revisions --out pairs.jsonl

A response without a score is never used, nor one that the length limit cut. A pair that occurs
again is written once. What became of the groups is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from herl_megatron.commands.score.output import write_whole
from herl_megatron.data.preference_pairs import pair_from_group
from herl_megatron.files.os_errors import absent, explain
from herl_megatron.report.records import read_records


def files_of(sources: Sequence[Path]) -> list[Path]:
    """Rollout files: those named, and all training steps of the runs named.

    Raises:
        ValueError: neither a file nor a run with rollouts.
    """
    files: list[Path] = []
    for source in sources:
        found = (
            [source]
            if not absent(source, "file")
            else sorted((source / "rollouts").glob("step_*.jsonl"))
        )
        if not found:
            raise ValueError(f"{source} is no rollout file and no run with rollouts/step_*.jsonl")
        files += found
    return files


def make_pairs(
    files: Sequence[Path], *, margin: float, revisions: bool, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows as `herl dpo` reads them; `counts` gets what became of each group."""
    seen: set[tuple[str, str, str]] = set()
    for file in files:
        for number, record in enumerate(read_records(file, answers_only=True), start=1):
            found = pair_from_group(record, margin=margin, revisions=revisions)
            if isinstance(found, str):
                counts[found] += 1
                continue
            key = (record["prompt_id"], *found)
            if key in seen:
                counts["seen before"] += 1
                continue
            seen.add(key)
            counts["pairs"] += 1
            yield {
                "id": f"{file}:{number}",  # runs of one name, other folders: other ids
                "messages": record["messages"],
                "chosen": found[0],
                "rejected": found[1],
                "source": record.get("source", ""),
                "extra": {"prompt_id": record["prompt_id"]},
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, write the pairs, say what became of the groups."""
    parser = argparse.ArgumentParser(
        prog="herl pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="RUN_OR_FILE")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    parser.add_argument(
        "--margin", type=float, default=0.1, help="least difference of the rewards (default 0.1)"
    )
    parser.add_argument("--revisions", action="store_true", help="a revision may be the chosen one")
    args = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    try:
        if os.path.lexists(args.out) and not (args.overwrite and args.out.is_file()):
            raise ValueError(
                f"--out {args.out} is there already; name another file, or replace it with"
                " --overwrite"
            )
        if not args.margin > 0:  # nan compares with nothing
            raise ValueError(f"--margin is {args.margin}; equal rewards prefer nothing: above 0")
        pairs = make_pairs(
            files_of(args.sources), margin=args.margin, revisions=args.revisions, counts=counts
        )
        lines = [json.dumps(pair, ensure_ascii=False, allow_nan=False) + "\n" for pair in pairs]
        if not counts["pairs"]:
            found = "; ".join(f"{name}: {count}" for name, count in counts.most_common())
            raise ValueError(f"no group makes a pair ({found}); nothing was written")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.out, "".join(lines).encode())
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: {explain(error, elsewhere='name another --out')}\n")
        return 2
    for name, count in counts.most_common():
        sys.stdout.write(f"{count:8d}  {name}\n")
    sys.stdout.write(f"{args.out}\n")
    return 0
