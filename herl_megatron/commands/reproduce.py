"""Run a row of the paper's tables from its data to its numbers, or print the commands.

    herl reproduce --list
    herl reproduce qwen2.5_7b/if/herl --print
    herl reproduce qwen2.5_7b/if/herl
    herl reproduce qwen2.5_7b/if/herl --scale toy

Started again it goes on where it was; stages that are done are skipped. Exit codes are those of the
stage that ended it: 75 and 3 too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import herl_megatron
from herl_megatron.config.key_by_key import key_by_key
from herl_megatron.config.secrets import without_secrets
from herl_megatron.files.os_errors import explain
from herl_megatron.files.run_files import EVALUATED
from herl_megatron.reproduce.chain import make_chain, row_folder
from herl_megatron.reproduce.lineage import is_of_earlier_policy, states
from herl_megatron.reproduce.needs import missing_inputs
from herl_megatron.reproduce.paper_rows import BENCHMARKS, METHODS, MODELS, PaperRow, all_rows
from herl_megatron.reproduce.paper_rows import find_row as find
from herl_megatron.reproduce.row_record import RowRecord
from herl_megatron.reproduce.run_chain import Children, Started, chosen_stages, run_stages
from herl_megatron.reproduce.stage import ChainOptions, Preset, Scale, Stage

_DECIDED = ("run.", "model.", "data.train", "data.eval", "sft.data", "dpo.data")
"""Keys that a chain sets, so that its stages fit together."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="herl reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("row", nargs="?", default="", metavar="ROW", help="see --list")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="of the train stage; those of judge, scoring and cluster are also the samples'",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="all rows, and how far each is")
    parser.add_argument("--print", action="store_true", help="the commands; run nothing")
    parser.add_argument("--only", default="", metavar="STAGE", help="one stage; eval is all eval_*")
    parser.add_argument(
        "--redo", action="store_true",
        help="move aside, to NAME.before-1, and make again what was made from earlier stages that"
        " are others by now",
    )  # fmt: skip
    parser.add_argument(
        "--scale", choices=get_args(Scale), default="full",
        help="toy: the same chain on the quickstart's small model, on a CPU",
    )  # fmt: skip
    parser.add_argument("--preset", choices=get_args(Preset), default="released")
    parser.add_argument(
        "--dir", type=Path, help="of the runs (default runs/reproduce/PRESET, or toy_PRESET)"
    )
    parser.add_argument(
        "--model", default="", metavar="PLACE", help="its folder or name on the Hub"
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=PLACE",
        help="file or folder of a data set (if, medical) or benchmark, instead of where it is from",
    )  # fmt: skip
    parser.add_argument(
        "--eval", action="append", default=[], metavar="KEY=VALUE",
        help="a key of the evaluations, such as judge.base_url",
    )  # fmt: skip
    parser.add_argument("--configs", type=Path, help="folder configs/ (default: here, else ours)")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 nothing was started, else that of the stage that failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parse_arguments(given)
    try:
        asked = _options(args)
        if args.list:
            _require_alone(args)
            _list(asked)
            return 0
        if not args.row:
            raise ValueError("give a row, such as qwen2.5_7b/if/herl, or --list")
        row = find(args.row)
        stages = make_chain(row, asked)
        # They import torch, to see the machine, and the judge's client: not for --list.
        from herl_megatron.commands.row_checks import require_sound
        from herl_megatron.commands.row_judges import silent_judges

        chosen = chosen_stages(stages, args.only)
        require_sound(row, stages, asked, here=() if args.print else chosen)
        if args.print:
            _print(row, chosen, asked, states(stages))
            return 0
        preset = asked.preset if row.task else ""
        children = Children()
        started = Started(
            folder=row_folder(row, asked),
            record=RowRecord(row.name, asked.scale, preset),
            again=("herl", "reproduce", *given),
            say=_say,
            child=children.run,
            problems=lambda chosen: _distinct(missing_inputs(chosen), silent_judges(chosen)),
        )
        with children.listening():
            return run_stages(started, stages, only=args.only, redo=args.redo)
    except ValueError as error:
        sys.stderr.write(f"herl reproduce: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"herl reproduce: {explain(error, elsewhere='name another --dir')}\n")
        return 1


def _options(args: argparse.Namespace) -> ChainOptions:
    """As given, looked at.

    Raises:
        ValueError: no folder of configurations, an option that is not NAME=VALUE or a key that the
            row decides.
    """
    inputs = _inputs(args.input)
    known = {*BENCHMARKS, "if", "medical"}
    if unknown := sorted(inputs.keys() - known):
        raise ValueError(f"--input {unknown[0]}: it is one of {', '.join(sorted(known))}")
    if args.scale == "toy" and (args.model or inputs):
        raise ValueError("--model and --input are for --scale full; the toy makes its own")
    name = args.preset if args.scale == "full" else f"toy_{args.preset}"
    return ChainOptions(
        configs=_configs(args.configs),
        folder=args.dir or Path("runs/reproduce") / name,
        scale=args.scale,
        preset=args.preset,
        model=args.model,
        inputs=inputs,
        overrides=_keys(args.overrides),
        evaluation=_keys(args.eval),
    )


def _keys(texts: Sequence[str]) -> tuple[str, ...]:
    """Overrides, each of one key, none of which the row decides."""
    for text in texts:
        _named(text, "KEY=VALUE")
    found = key_by_key(texts)
    for text in found:
        key = text.partition("=")[0]
        decided = key.startswith(_DECIDED) or key in ("run", "model", "data", "sft", "dpo")
        if decided and key != "run.seed":
            raise ValueError(
                f"{without_secrets(text)}: the row decides that; --dir says where its runs are,"
                " --model and --input what it starts from"
            )
    return found


def _inputs(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, place = _named(text, "--input")
        if name in found:
            raise ValueError(f"--input: {name} is given twice, {found[name]} and {place}")
        found[name] = place
    return found


def _require_alone(args: argparse.Namespace) -> None:
    """Refuse what `--list` would not look at."""
    others = {
        "--only": args.only, "--print": args.print, "--model": args.model, "--input": args.input,
        "--eval": args.eval,
    }  # fmt: skip
    given = [text for text in (args.row, *args.overrides) if text]
    given += [name for name, value in others.items() if value]
    if given:
        raise ValueError(f"--list shows all rows; leave {', '.join(given)} away")


def _distinct(*problems: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(problem for some in problems for problem in some))


def _named(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"{option}: {text!r} must read NAME=VALUE")
    return key, value


def _configs(given: Path | None) -> Path:
    """The folder of the parts: the one that is named, the one here, or that of this checkout."""
    ours = Path(herl_megatron.__file__).parents[1] / "configs"
    for folder in [given] if given else [Path("configs"), ours]:
        if (folder / "methods").is_dir():
            return folder
    raise ValueError(
        f"{given or 'configs'} is no folder with the configurations that rows are composed of; run"
        " in a checkout of the repository, or name its folder configs/ with --configs"
    )


def _list(asked: ChainOptions) -> None:
    for row in all_rows():
        cells = ", ".join(BENCHMARKS[name] for name in row.benchmarks)
        about = f"{MODELS[row.model]}, {METHODS[row.method]}: {cells}"
        _say(f"{row.name:<28} {_how_far(row, asked):<16} {about}")


def _how_far(row: PaperRow, asked: ChainOptions) -> str:
    """By the last file of each of the row's evaluations of the policy that is there."""
    names = row.benchmarks if asked.scale == "full" else ("toy",)
    folder = row_folder(row, asked)
    if not folder.is_dir():
        return "-"
    made = [f"eval_{name}" for name in names if (folder / f"eval_{name}" / EVALUATED).is_file()]
    stale = sum(is_of_earlier_policy(folder, name) for name in made)
    return f"{len(made) - stale} of {len(names)}{f', {stale} stale' if stale else ''}"


def _print(
    row: PaperRow, stages: Sequence[Stage], asked: ChainOptions, found: Mapping[str, str]
) -> None:
    model = MODELS[row.model] if asked.scale == "full" else "the toy's model"
    preset = f", preset {asked.preset}" if row.task else ""
    _say(f"# {row.name}: {model}, {METHODS[row.method]}{preset}")
    from herl_megatron.commands.row_judges import unnamed_judges

    for problem in _distinct(missing_inputs(stages), unnamed_judges(stages, asked)):
        _say(f"# missing: {problem}")
    for number, stage in enumerate(stages, start=1):
        state = f" ({found[stage.name]})" if found[stage.name] else ""
        _say(f"# {number}. {stage.name}{state}: {stage.makes}")
        _say(stage.command)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
