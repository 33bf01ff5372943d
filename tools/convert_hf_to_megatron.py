r"""Convert a Hugging Face folder to a Megatron checkpoint laid out for a trainer's ranks.

    python tools/convert_hf_to_megatron.py --hf MODEL --out WEIGHTS --tp 8 --pp 2
    herl train CONFIG model.path=MODEL model.megatron_path=WEIGHTS

    python tools/convert_hf_to_megatron.py --hf MODEL --weights runs/x/checkpoints/step_000100 \
        --out WEIGHTS --tp 4                       # from one Megatron layout to another

One process, no training configuration, no GPU; memory for one tensor per thread. Any layout can
read any folder; with the same layout every rank finds its weights in files of its own. `--out`
appears complete, with a manifest of hashes, or not at all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from herl_megatron.megatron.convert import TrainerLayout, hf_to_megatron
from tools._convert import add_common_arguments, dtype_of, report, run


def main() -> int:
    """Parse the arguments and convert; 1 when the input or the disk will not do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf", type=Path, required=True, help="folder with config and weights")
    parser.add_argument(
        "--weights", type=Path, help="take the weights from this Megatron checkpoint instead"
    )
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel ranks")
    parser.add_argument("--pp", type=int, default=1, help="pipeline stages")
    parser.add_argument("--vpp", type=int, default=1, help="model chunks per stage")
    parser.add_argument("--ep", type=int, default=1, help="expert parallel ranks")
    parser.add_argument(
        "--etp", type=int, help="ranks that cut an expert's matrices; as many as --tp if left out"
    )
    add_common_arguments(parser)
    args = parser.parse_args()
    layout = TrainerLayout(tp=args.tp, pp=args.pp, ep=args.ep, vpp=args.vpp, etp=args.etp)
    return run(
        lambda progress: report(
            hf_to_megatron(
                args.hf,
                args.out,
                layout=layout,
                weights=args.weights,
                dtype=dtype_of(args.dtype),
                threads=args.threads,
                check_hashes=not args.skip_hashes,
                progress=progress,
            )
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
