"""Write the CPU quickstart's toy task: a random model with tokenizer, prompts and SFT rows.

Example: python tools/make_toy_task.py --out runs/toy --seed 0
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from herl_megatron.data.toy_files import TOY_FILES, write_toy_task


def main() -> int:
    """Parse the arguments, write the files, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts, rows and weights")
    parser.add_argument("--train-prompts", type=int, default=512)
    parser.add_argument("--heldout-prompts", type=int, default=128)
    parser.add_argument(
        "--sft-rows", type=int, default=10_400, help="supervised rows: steps x rows per step"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args()
    there = [name for name in TOY_FILES if os.path.lexists(args.out / name)]
    if there and not args.overwrite:
        print(
            f"error: {args.out} already has {', '.join(there)}; name another folder, or replace"
            " them with --overwrite", file=sys.stderr,
        )  # fmt: skip
        return 2
    start = time.perf_counter()
    write_toy_task(
        args.out,
        seed=args.seed,
        train_prompts=args.train_prompts,
        heldout_prompts=args.heldout_prompts,
        sft_rows=args.sft_rows,
    )
    print(
        f"toy task in {args.out}: {args.train_prompts} train and {args.heldout_prompts} held-out "
        f"prompts, {args.sft_rows} supervised rows, model/ ({time.perf_counter() - start:.1f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
