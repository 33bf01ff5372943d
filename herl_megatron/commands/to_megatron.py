r"""Convert a Hugging Face folder to a Megatron checkpoint laid out for a trainer's ranks.

    herl convert to-megatron --hf MODEL --out WEIGHTS --tp 8 --pp 2
    herl train CONFIG model.path=MODEL model.megatron_path=WEIGHTS

    herl convert to-megatron --hf MODEL --weights runs/x/checkpoints/step_000100 \
        --out WEIGHTS --tp 4                       # from one Megatron layout to another

One process, no training configuration, no GPU; memory for one tensor per thread. Any layout can
read any folder; with the same layout every rank finds its weights in files of its own. `--out`
appears complete, with a manifest of hashes, or not at all.
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
        prog="herl convert to-megatron",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--hf", required=True, help="folder with config and weights, or name on the Hub"
    )
    parser.add_argument(
        "--weights", type=Path, help="take the weights from this Megatron checkpoint instead"
    )
    parser.add_argument("--tp", type=at_least_one, default=1, help="tensor parallel ranks")
    parser.add_argument("--pp", type=at_least_one, default=1, help="pipeline stages")
    parser.add_argument("--vpp", type=at_least_one, default=1, help="model chunks per stage")
    parser.add_argument("--ep", type=at_least_one, default=1, help="expert parallel ranks")
    parser.add_argument(
        "--etp",
        type=at_least_one,
        help="ranks that cut an expert's matrices; as many as --tp if left out",
    )
    add_common_arguments(parser)
    args = parser.parse_args(arguments)
    # Imported here: `--help` would take seconds.
    from herl_megatron.megatron.convert.conversion import Files, hf_to_megatron
    from herl_megatron.megatron.convert.layout import TrainerLayout

    layout = TrainerLayout(tp=args.tp, pp=args.pp, ep=args.ep, vpp=args.vpp, etp=args.etp)
    return run(
        lambda progress: report(
            hf_to_megatron(
                local_folder(args.hf, key="--hf", weights=args.weights is None),
                args.out,
                layout=layout,
                weights=args.weights,
                dtype=dtype_of(args.dtype),
                files=Files(threads=args.threads),
                check_hashes=not args.skip_hashes,
                progress=progress,
            )
        )
    )
