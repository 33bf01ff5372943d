"""Preference pairs for `herl dpo` from a run's rollouts: each group's best and worst response.

    python tools/make_pairs.py runs/quickstart/herl --out pairs.jsonl
    python tools/make_pairs.py FILE.jsonl FILE.jsonl --margin 0.3 --revisions --out pairs.jsonl

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

from herl_megatron.data.pairs import pair_from_group
from herl_megatron.report.rollouts import read_records


def files_of(sources: Sequence[Path]) -> list[Path]:
    """Rollout files: those named, and all training steps of the runs named.

    Raises:
        ValueError: neither a file nor a run with rollouts.
    """
    files: list[Path] = []
    for source in sources:
        found = [source] if source.is_file() else sorted((source / "rollouts").glob("step_*.jsonl"))
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
        for number, record in enumerate(read_records(file), start=1):
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


def main() -> int:
    """Parse the arguments, write the pairs, say what became of the groups."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="RUN_OR_FILE")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument(
        "--margin", type=float, default=0.1, help="least difference of the rewards (default 0.1)"
    )
    parser.add_argument("--revisions", action="store_true", help="a revision may be the chosen one")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    temporary = args.out.with_name(f"{args.out.name}.tmp")
    try:
        if args.margin <= 0:
            raise ValueError(f"--margin is {args.margin}; equal rewards prefer nothing: above 0")
        pairs = make_pairs(
            files_of(args.sources), margin=args.margin, revisions=args.revisions, counts=counts
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for pair in pairs:
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")
        if not counts["pairs"]:
            found = "; ".join(f"{name}: {count}" for name, count in counts.most_common())
            raise ValueError(f"no group makes a pair ({found}); nothing was written")
    except ValueError as error:
        temporary.unlink(missing_ok=True)
        print(f"error: {error}", file=sys.stderr)
        return 2
    os.replace(temporary, args.out)
    for name, count in counts.most_common():
        print(f"{count:8d}  {name}")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
