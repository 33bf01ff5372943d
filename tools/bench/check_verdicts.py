r"""Our IFEval or IFBench verdicts against a reference's, on mutated responses and parameters.

    python tools/bench/check_verdicts.py --benchmark ifeval --reference FOLDER \
        --rows FOLDER/data/input_data.jsonl --responses RESPONSES.jsonl --cases 100000

--reference is a folder of your own with the benchmark's `instructions_registry.py` (its
`INSTRUCTION_DICT` maps an instruction's id to a class with `build_description(**kwargs)` and
`check_following(response)`); --rows has `instruction_id_list` and `kwargs`, --responses rows with
`response`. Cases in which one side decides nothing (the reference raises, ours is unverifiable) are
counted apart. Prints the share of equal verdicts, and the first differences of every check.

The reference draws at random where a parameter is missing, and langdetect without a seed; both are
seeded. What it imports and never needs for a verdict (`absl`, `spacy`) is replaced by nothing.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from herl_megatron.rubrics.checks import registry
from herl_megatron.types import Criterion, Verdict
from tools.bench._out import json_lines

_UNUSED = ("absl", "absl.logging", "spacy", "spacy.cli")
_PIECES = (
    "\n", "\n\n", "\n\n\n", " ", "  ", "\t", ".", ",", "?", "!", "...", "?!", "\u203d", '"', "'",
    "\u201c", "\u201d", "*", "**", "***", "******", "- ", "* ", "[x]", "[", "]", "(", "{", "}", ")",
    "<<T>>", "<i>", "</i>", "P.S. ", "P. S.", "p.p.s", "Mr.", "e.g. ", "U.S. ", "Ph.D. ", "3.14",
    "1,000", "a", "I", "The", "THE", "can't", "it's", "\ue000", "\ue001", "\u4f60\u597d", "\u3053",
    "\U0001f600", "\u00e9", "and", "or", "SECTION 1", "Day 3", "```json\n", "```", "\u00a0", "\r\n",
    "\x0b", "_", "/", "\u2028", "\u0660", "Emma", "-", "--", "---", "\u2014", ";", ":", "$", "C++",
    "1", "2024-01-01",
)  # fmt: skip
_CHOICES = {"relation", "let_relation", "capital_relation"}
_SHOWN = 2


@dataclass
class Found:
    """Cases by what came of them."""

    equal: int = 0
    undecided: Counter[str] = field(default_factory=Counter)
    different: dict[str, list[str]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of equal verdicts, where both sides decide."""
        differing = sum(map(len, self.different.values()))
        return self.equal / max(1, self.equal + differing)


def load_reference(folder: Path) -> Mapping[str, Any]:
    """`INSTRUCTION_DICT` of the folder's registry."""
    for name in _UNUSED:
        sys.modules.setdefault(name, MagicMock())
    sys.modules.setdefault("immutabledict", MagicMock(immutabledict=dict))
    sys.path.insert(0, str(folder))
    try:
        table: Mapping[str, Any] = importlib.import_module("instructions_registry").INSTRUCTION_DICT
    finally:
        sys.path.remove(str(folder))
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return table


def reference_verdict(
    table: Mapping[str, Any], name: str, params: Mapping[str, Any], response: str
) -> bool | None:
    """The reference's verdict; None where it raises."""
    random.seed(0)
    instruction = table[name](name)
    try:
        instruction.build_description(**params)
        return bool(response.strip() and instruction.check_following(response))
    except Exception:  # whatever its checks raise is no verdict
        return None


def our_verdict(benchmark: str, name: str, params: Mapping[str, Any], text: str) -> bool | None:
    """Ours; None where there is none."""
    result = registry.run_check(Criterion("c", "rule", f"{benchmark}/{name}", params), text)
    return None if result.verdict is Verdict.UNVERIFIABLE else result.verdict is Verdict.FOLLOWED


def mutated_text(draw: random.Random, text: str, params: Mapping[str, Any]) -> str:
    """The text with pieces taken out, put in, repeated or moved; the parameters' words among them,
    so that verdicts change."""
    words = [word for value in params.values() for word in _words(value)]
    for _ in range(draw.choice([0, 1, 1, 2, 3, 5])):
        at = draw.randrange(len(text) + 1)
        lines = text.split("\n")
        text = draw.choice(
            [
                text[:at] + text[at + draw.choice([1, 2, 10, 100]) :],
                text[:at] + "".join(draw.choices(_PIECES, k=draw.randrange(1, 8))) + text[at:],
                text[:at] + draw.choice([*words, "a"]) + draw.choice(["", ".", " "]) + text[at:],
                "\n".join(draw.sample(lines, len(lines))),
                "\n".join(lines[: draw.randrange(1, 6)]),
                draw.choice([text.upper(), text.lower(), text.title()]),
                draw.choice(_PIECES) + text,
                text + draw.choice([*_PIECES, *words]),
                text.replace(draw.choice(_PIECES), draw.choice(_PIECES)),
                "".join(draw.choices(_PIECES, k=draw.randrange(1, 25))),
            ]
        )
    return text[:6000]


def _words(value: Any) -> Sequence[str]:
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    return [value] if isinstance(value, str) else []


def mutated_params(draw: random.Random, params: Mapping[str, Any]) -> dict[str, Any]:
    """Other numbers, other relations, blanks around words."""
    return {
        name: _mutated(draw, name, value) if draw.random() < 0.25 else value
        for name, value in params.items()
    }


def _mutated(draw: random.Random, name: str, value: Any) -> Any:
    if isinstance(value, int):
        return max(0, value + draw.choice([-2, -1, 1, 2, 5]))
    if isinstance(value, list):
        return [_mutated(draw, name, item) for item in value]
    if not isinstance(value, str):
        return value
    if name in _CHOICES:
        return draw.choice(["at least", "less than"])
    return draw.choice([f"{value} ", f" {value}", value.upper(), value[:-1] or value, f"{value}s"])


def compare(
    benchmark: str, table: Mapping[str, Any], rows: Sequence[Mapping[str, Any]],
    responses: Sequence[str], *, cases: int, seed: int,
) -> Found:  # fmt: skip
    """Every check equally often."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for name, params in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            asked.setdefault(name, []).append(_plain(params or {}))
    draw, found = random.Random(seed), Found()
    for number in range(cases):
        name = sorted(asked)[number % len(asked)]
        params = mutated_params(draw, draw.choice(asked[name]))
        text = mutated_text(draw, draw.choice(responses), params)
        theirs = reference_verdict(table, name, params, text)
        ours = our_verdict(benchmark, name, params, text)
        if theirs is None or ours is None:
            found.undecided[name] += 1
        elif ours == theirs:
            found.equal += 1
        else:
            shown = f"{params!r:.120} on {text!r:.160}: reference {theirs}, ours {ours}"
            found.different.setdefault(name, []).append(shown)
    return found


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls, whole floats as whole numbers (tables have them so)."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in params.items()
        if value is not None
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """1 where fewer verdicts are equal than `--least`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmark", choices=("ifeval", "ifbench"), required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--responses", type=Path, action="append", required=True)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.997, help="share of equal verdicts")
    args = parser.parse_args(arguments)
    responses = [row["response"] for file in args.responses for row in list(json_lines(file))]
    found = compare(
        args.benchmark, load_reference(args.reference), list(json_lines(args.rows)), responses,
        cases=args.cases, seed=args.seed,
    )  # fmt: skip
    sys.stdout.write(
        f"{found.share:.4%} of {args.cases - found.undecided.total()} verdicts are equal;"
        f" {found.undecided.total()} cases are decided by one side alone or by none\n"
    )
    for name, cases in sorted(found.different.items()):
        sys.stdout.write("\n  ".join([f"{name}: {len(cases)}", *cases[:_SHOWN]]) + "\n")
    return 0 if found.share >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
