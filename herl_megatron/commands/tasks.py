"""Write the rows of a task for small instruction-tuned models: train.jsonl, heldout.jsonl.

    herl tasks unstated --out data/unstated
    herl tasks unstated --styles note card list --out data/styles
    herl tasks stated --seed 1 --train 480 --out data/stated
    herl tasks toy --out runs/toy

Prompts ask for short answers about topics, and none of the held-out topics occurs in training.
`stated`: two of IFEval's instructions stand in the prompt. `unstated`: the criteria are a house
style that no prompt mentions. `toy`: the quickstart's task, with demonstrations (sft.jsonl) and a
model of random weights (model/). Checked by rules; no judge. The same arguments write the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from herl_megatron.data.canonical_rows import row_from_prompt
from herl_megatron.data.short_answers import HOUSE_STYLES, Task, draw_rows
from herl_megatron.data.toy_files import TOY_FILES, write_toy_task
from herl_megatron.types import Prompt

FILES = ("train.jsonl", "heldout.jsonl")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="herl tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=(*get_args(Task), "toy"))
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of topics, prompts and their order")
    parser.add_argument("--train", type=int, default=192, help="prompts")
    parser.add_argument("--heldout", type=int, default=64, help="prompts")
    parser.add_argument("--heldout-topics", type=int, default=16)
    parser.add_argument("--sft-rows", type=int, default=6400, help="toy: demonstrations")
    parser.add_argument(
        "--styles", nargs="+", choices=list(HOUSE_STYLES), default=["note"],
        help="unstated: the kinds of text that are asked for",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 nothing was."""
    args = parse_arguments(arguments)
    try:
        files = TOY_FILES if args.task == "toy" else FILES
        there = [name for name in files if os.path.lexists(args.out / name)]
        if there and not args.overwrite:
            raise ValueError(
                f"{args.out} already has {', '.join(there)}; name another folder, or replace them "
                "with --overwrite"
            )
        if args.task == "toy":
            _write_toy(args)
        else:
            _write_rows(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"herl tasks: {error}\n")
        return 2
    sys.stdout.write(
        f"{args.task}: {args.train} training and {args.heldout} held-out prompts in {args.out}\n"
    )
    return 0


def _write_rows(args: argparse.Namespace) -> None:
    rows = draw_rows(
        args.task,
        seed=args.seed,
        train=args.train,
        heldout=args.heldout,
        heldout_topics=args.heldout_topics,
        styles=args.styles,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for name, prompts in zip(FILES, (rows.train, rows.heldout), strict=True):
        _write(args.out / name, prompts)


def _write_toy(args: argparse.Namespace) -> None:
    """All of it elsewhere first, then by rename, the model last: what is there is whole."""
    partial = args.out / ".toy.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_toy_task(
        partial,
        seed=args.seed,
        train_prompts=args.train,
        heldout_prompts=args.heldout,
        sft_rows=args.sft_rows,
    )
    if args.overwrite:
        shutil.rmtree(args.out / "model", ignore_errors=True)
    for name in sorted(TOY_FILES, key=lambda name: name == "model"):
        os.replace(partial / name, args.out / name)
    partial.rmdir()


def _write(path: Path, prompts: Iterable[Prompt]) -> None:
    """One canonical row a line; the file appears whole, by rename."""
    temporary = path.with_name(f"{path.name}.tmp")
    lines = [json.dumps(row_from_prompt(prompt), allow_nan=False) + "\n" for prompt in prompts]
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path)
