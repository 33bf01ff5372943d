r"""Prove a conversion: hashes, the round trip bit for bit, and the logits.

    herl verify --hf MODEL --megatron WEIGHTS
    herl verify --hf MODEL --megatron runs/x/checkpoints/step_000100 \
        --dtype bf16

Every file is compared with its manifest where there is one (a downloaded model has none), the kept
config.json with MODEL's, then every tensor of WEIGHTS, read back as a Hugging Face
tensor, with that of MODEL bit for bit (after rounding MODEL's to `--dtype`, if the conversion was
told to). With `--logits`, for models that fit into memory twice, WEIGHTS are also loaded into
Megatron-Core's model in fp32 in this process and its logits compared with transformers' on random
tokens: the largest absolute difference must not exceed `--tolerance`. Exit status 1 if anything
differs. To see what a training step made of a model, compare its checkpoint with the folder that
`herl convert to-hf` made of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from herl_megatron.commands.converting import at_least_one, dtype_of
from herl_megatron.config.hub import local_folder

LOGITS_TOLERANCE = 5e-5
"""In fp32; what the layouts of tiny models differ by from transformers (tests/distributed)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print a line per check."""
    parser = argparse.ArgumentParser(
        prog="herl verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hf", required=True, help="folder, or name on the Hub")
    parser.add_argument("--megatron", type=Path, required=True)
    parser.add_argument("--dtype", choices=["keep", "bf16", "fp32"], default="keep")
    parser.add_argument("--logits", action="store_true", help="compare logits too")
    parser.add_argument("--tokens", type=at_least_one, default=64, help="of each of the two rows")
    parser.add_argument("--tolerance", type=float, default=LOGITS_TOLERANCE)
    args = parser.parse_args(arguments)
    # Imported here: `--help` would take seconds.
    from herl_megatron.megatron.convert.compare import compare_tensors, logits_difference
    from herl_megatron.megatron.convert.conversion import HF_PART, check_hashes_of
    from herl_megatron.megatron.convert.megatron_reader import MegatronFolder
    from herl_megatron.models.hf_config import read_architecture
    from herl_megatron.models.hf_reader import HFFolder

    console = Console(highlight=False, soft_wrap=True)
    try:
        given = local_folder(args.hf, key="--hf")
        architecture = read_architecture(str(given))
        hf, megatron = HFFolder(given), MegatronFolder(args.megatron, architecture)
        for folder in (given, megatron.path):
            manifest = check_hashes_of(folder)
            said = f"as in the manifest of {manifest}" if manifest else "not checked: no manifest"
            console.print(f"hashes of {folder}: {said}")
        hf.check(architecture)
        megatron.check()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    failed = False
    if (part := megatron.path / HF_PART).is_dir():
        failed = (part / "config.json").read_bytes() != (given / "config.json").read_bytes()
        console.print(f"config.json: {'differs from the one kept' if failed else 'equal'}")
    count, different = compare_tensors(hf, megatron, architecture, dtype_of(args.dtype))
    console.print(f"tensors: {count - len(different)} of {count} equal bit for bit")
    for name in different[:8]:
        console.print(f"  differs: {name}")
    failed |= bool(different)
    if args.logits:
        difference = logits_difference(given, args.megatron, tokens=args.tokens)
        failed |= not difference <= args.tolerance
        console.print(f"logits: max |difference| {difference:.1e}, tolerance {args.tolerance:.1e}")
    return int(failed)
