"""Write the CPU quickstart's toy task: a random model with tokenizer, prompts and SFT rows.

Example: python tools/make_toy_task.py --out runs/toy --seed 0
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from herl_megatron.data.toy_files import write_toy_task


def main() -> None:
    """Parse the arguments, write the files, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts, rows and weights")
    parser.add_argument("--train-prompts", type=int, default=512)
    parser.add_argument("--heldout-prompts", type=int, default=128)
    parser.add_argument(
        "--sft-rows", type=int, default=10_400, help="supervised rows: steps x rows per step"
    )
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
