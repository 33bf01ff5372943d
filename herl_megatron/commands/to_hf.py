"""Convert a Megatron checkpoint of any layout to a Hugging Face folder.

    herl convert to-hf --megatron WEIGHTS --out MODEL
    herl convert to-hf --megatron runs/x/checkpoints/step_000100 --out MODEL

The input is a folder of `herl convert to-megatron`, or a checkpoint of a run. Of the latter the
weights that the model computes with are taken; `--dtype fp32` takes the optimizer's fp32 main
weights, of which a bf16 run's weights are the rounding (to nearest, ties to even).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from herl_megatron.commands.converting import (
    add_common_arguments,
    at_least_one,
    dtype_of,
    report,
    run,
)
from herl_megatron.config.hub import local_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and convert; 1 when the input or the disk will not do."""
    parser = argparse.ArgumentParser(
        prog="herl convert to-hf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--megatron", type=Path, required=True, help="the checkpoint")
    parser.add_argument(
        "--hf",
        help="folder, or name on the Hub, of configuration and tokenizer, where the"
        " checkpoint has none",
    )
    parser.add_argument(
        "--shard-bytes", type=at_least_one, help="largest shard (default: about 16 shards)"
    )
    add_common_arguments(parser)
    args = parser.parse_args(arguments)
    from herl_megatron.megatron.convert.conversion import (
        megatron_to_hf,  # `--help` would take seconds
    )

    return run(
        lambda progress: report(
            megatron_to_hf(
                args.megatron,
                args.out,
                hf=local_folder(args.hf, key="--hf", weights=False) if args.hf else None,
                dtype=dtype_of(args.dtype),
                shard_bytes=args.shard_bytes,
                threads=args.threads,
                check_hashes=not args.skip_hashes,
                progress=progress,
            )
        )
    )
