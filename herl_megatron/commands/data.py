"""Turn a public data set into canonical rows: train.jsonl, eval.jsonl, rejected.jsonl, report.json.

    herl data ifeval --input input_data.jsonl --out data/ifeval
    herl data rar_medicine --input ScaleAI/RaR-Medicine --out data/rar
    herl data rar_science --input train=a.parquet --input test=b.parquet --out d
    herl data plain --input mine.jsonl --eval-share 0.1 --out data/mine

--input takes a file (.jsonl, .json, .csv, .parquet, .jsonl.gz), a folder of data files, or a data
set's name on the Hugging Face Hub, each with `SPLIT=` before it to say or choose the part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from herl_megatron.data.sources.catalog import SOURCES
from herl_megatron.data.sources.common import Options, Unclear
from herl_megatron.data.sources.prepare import Job, prepare
from herl_megatron.data.sources.read import parse_input
from herl_megatron.data.sources.report import show_report
from herl_megatron.types import Aggregation

_MAKERS = """
rows for supervised fine-tuning and for DPO (each with a --help of its own):
  herl data sft    reference answers, or the best of the own samples
  herl data pairs  best against worst, or the reference against the own answer"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = "\n".join(f"  {name:<13} {source.about}" for name, source in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="herl data",
        description=f"{__doc__}\nsources:\n{names}\n{_MAKERS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=SOURCES, metavar="SOURCE")
    parser.add_argument("--input", action="append", required=True, metavar="[SPLIT=]PLACE")
    parser.add_argument("--config", default="", help="configuration of a Hub data set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--overwrite", action="store_true", help="replace its earlier files")
    parser.add_argument(
        "--eval-share", type=float, help="part of the prompts to hold out, for sets without splits"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument(
        "--keep-out", action="append", default=[], metavar="FILE",
        help="canonical rows (a benchmark's eval.jsonl) whose prompts must not be trained on",
    )  # fmt: skip
    parser.add_argument(
        "--no-judge", action="store_true", help="leave out items that only a judge could check"
    )
    parser.add_argument(
        "--types", default="", metavar="type1,type2,...",
        help="HIR: the row types to take (type1 IFEval's, type2 IFBench's, type3 MulDimIF's rules,"
        " type4 statements), all by default",
    )  # fmt: skip
    parser.add_argument(
        "--aggregation", choices=get_args(Aggregation), help="instead of the set's own"
    )
    parser.add_argument(
        "--unclear-pitfalls", choices=get_args(Unclear), default="leave_out",
        help="RaR: pitfalls whose wording leaves open whether met is good",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark", action="store_true",
        help="for numbers that compare with others': keep every row, repeated ones too, and give"
        " MulDimIF's unreadable constraints the benchmark's own verdict",
    )  # fmt: skip
    parser.add_argument(
        "--responses", default="", metavar="FIELD",
        help="a model's responses in the rows: also write responses.jsonl, for `herl score`",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", default="", help="folder or name on the Hub, for prompt lengths"
    )
    parser.add_argument("--max-prompt-tokens", type=int, default=0)
    parser.add_argument("--drop-long", action="store_true", help="reject prompts over that limit")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 written, 2 nothing was; `sft` and `pairs` are commands of their own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["sft"]:
        from herl_megatron.commands.demonstrations import main as make_demonstrations

        return make_demonstrations(given[1:])
    if given[:1] == ["pairs"]:
        from herl_megatron.commands.pairs import main as make_pairs

        return make_pairs(given[1:], prog="herl data pairs")
    args = parse_arguments(given)
    options = Options(
        judge=not args.no_judge,
        aggregation=args.aggregation,
        unclear=args.unclear_pitfalls,
        benchmark=args.benchmark,
        types=tuple(filter(None, args.types.split(","))),
    )
    job = Job(
        source=args.source,
        inputs=tuple(parse_input(text, args.config) for text in args.input),
        out=args.out,
        options=options,
        eval_share=args.eval_share,
        seed=args.seed,
        keep_out=tuple(args.keep_out),
        responses=args.responses,
        tokenizer=args.tokenizer,
        max_prompt_tokens=args.max_prompt_tokens,
        drop_long=args.drop_long,
        overwrite=args.overwrite,
    )
    try:
        report = prepare(job)
    except (ValueError, OSError) as error:  # what was there before is as it was
        sys.stderr.write(f"herl data: {error}\n")
        return 2
    console = Console()
    show_report(report, console)
    console.print(f"\nwritten to {args.out}", highlight=False, soft_wrap=True)
    return 0
