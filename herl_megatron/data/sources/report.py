"""What was prepared: counts as JSON, and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from herl_megatron.data.sources.common import missing_here, rule_problem
from herl_megatron.data.sources.known_sets import KnownSet
from herl_megatron.data.sources.splits import OUTPUTS, Placed
from herl_megatron.types import Criterion

Report = dict[str, Any]
_SHOWN = 12


@dataclass(frozen=True)
class Reported:
    """What a report is made of. `lengths`: prompt tokens of each placed row, or empty.

    rejected: the kind of each rejected row. leaked: how many of those are held out too, by where.
    holds: a benchmark that is a part of the set.
    """

    source: str
    inputs: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    rows_in: int
    placed: Sequence[Placed]
    rejected: Sequence[str]
    lengths: Sequence[int]
    max_prompt_tokens: int
    leaked: Mapping[str, int] = field(default_factory=dict)
    holds: KnownSet | None = None


def build_report(made: Reported) -> Report:
    """The report as plain JSON values; nothing in it depends on the time of day.

    `unverifiable_here` alone depends on the machine: checks whose data or package it lacks.
    """
    prompts = [item.converted.prompt for item in made.placed]
    criteria = [criterion for prompt in prompts for criterion in prompt.rubric.criteria]
    rules = [criterion for criterion in criteria if criterion.kind == "rule"]
    outputs = Counter(item.output for item in made.placed)
    return {
        "source": made.source,
        "inputs": list(made.inputs),
        "options": dict(made.options),
        "rows": {
            "in": made.rows_in,
            **{output: outputs[output] for output in OUTPUTS if outputs[output]},
            "rejected": len(made.rejected),
        },
        "sources": _sources(made.placed),
        "rejected": _counted(made.rejected),
        "leaked": dict(made.leaked),
        "benchmark": _benchmark(made),
        "notes": _counted(note for item in made.placed for note in item.converted.notes),
        "aggregation": _counted(prompt.rubric.aggregation for prompt in prompts),
        "criteria": {
            "all": len(criteria),
            "rule": len(rules),
            "judge": len(criteria) - len(rules),
            "per_prompt": round(len(criteria) / len(prompts), 2),
            "polarity": _counted(criterion.polarity for criterion in criteria),
            "by_check": _counted(criterion.check for criterion in rules),
        },
        # What follows the colon is about one criterion alone.
        "unverifiable": _nested(
            (rule.check, rule_problem(rule).partition(": ")[0]) for rule in rules
        ),
        "unverifiable_here": _nested((rule.check, _missing(rule)) for rule in rules),
        "prompt_tokens": _tokens(made),
    }


def _sources(placed: Sequence[Placed]) -> dict[str, dict[str, int]]:
    """Output -> source -> rows; a source's name goes on after a slash where rows are of types."""
    by_output = {
        output: _counted(p.converted.prompt.source for p in placed if p.output == output)
        for output in OUTPUTS
    }
    return {output: counts for output, counts in by_output.items() if counts}


def _benchmark(made: Reported) -> dict[str, Any] | None:
    """The known part: how much of it is held out here."""
    if made.holds is None:
        return None
    return {
        "name": made.holds.title,
        "there": made.holds.found(made.placed),
        "of": len(made.holds.hashes),
    }


def _counted(values: Iterable[str]) -> dict[str, int]:
    """Most frequent first, then by name."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))


def _nested(problems: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Check -> reason -> count, of the reasons that are not empty."""
    found: dict[str, Counter[str]] = {}
    for check, problem in problems:
        if problem:
            found.setdefault(check, Counter())[problem] += 1
    return {check: _counted(found[check].elements()) for check in sorted(found)}


def _missing(rule: Criterion) -> str:
    return "" if rule_problem(rule) else missing_here(rule)


def _tokens(made: Reported) -> dict[str, Any] | None:
    if not made.lengths:
        return None
    lengths = np.asarray(made.lengths)
    found: dict[str, Any] = {
        f"p{percent}": int(np.percentile(lengths, percent, method="inverted_cdf"))
        for percent in (50, 90, 99)
    }
    found["max"] = int(lengths.max())
    if made.max_prompt_tokens:
        over = lengths > made.max_prompt_tokens
        ids = [made.placed[index].converted.prompt.id for index in np.flatnonzero(over).tolist()]
        found |= {"limit": made.max_prompt_tokens, "over_limit": len(ids), "over_limit_ids": ids}
    return found


def show_report(report: Report, console: Console) -> None:
    """The report in tables; parts with nothing to say are left out."""
    rows, criteria = report["rows"], report["criteria"]
    console.print(f"[bold]{escape(report['source'])}[/]", highlight=False)
    _show("rows", rows, console)
    _show("source", _flat(report["sources"]), console)
    _show("rejected (rejected.jsonl has each with its row)", report["rejected"], console)
    _show("left out of training, because also in", report["leaked"], console)
    if known := report["benchmark"]:
        console.print(f"\n{known['name']}: {known['there']} of {known['of']} there")
    _show("notes", report["notes"], console)
    _show("aggregation", report["aggregation"], console)
    summary = {key: criteria[key] for key in ("all", "rule", "judge", "per_prompt")}
    _show("criteria", summary, console)
    _show("polarity", criteria["polarity"], console)
    _show("rules by check", criteria["by_check"], console)
    _show("unverifiable for every response: left out of the reward", _flat(report["unverifiable"]),
          console)  # fmt: skip
    _show("unverifiable on this machine", _flat(report["unverifiable_here"]), console)
    tokens = report["prompt_tokens"] or {}
    _show("prompt tokens", {k: v for k, v in tokens.items() if k != "over_limit_ids"}, console)


def _flat(nested: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    found = {f"{c}: {reason}": n for c, reasons in nested.items() for reason, n in reasons.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _show(title: str, counts: Mapping[str, Any], console: Console) -> None:
    if not counts:
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for name, value in list(counts.items())[:_SHOWN]:
        table.add_row(f"{value:,}" if isinstance(value, int) else str(value), escape(name))
    if len(counts) > _SHOWN:
        rest = sum(list(counts.values())[_SHOWN:])
        table.add_row(f"{rest:,}", f"{len(counts) - _SHOWN} more: report.json", style="dim")
    console.print(f"\n[bold]{escape(title)}[/]", highlight=False)
    console.print(table)
