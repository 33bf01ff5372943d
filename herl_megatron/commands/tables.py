"""What `herl eval`, `herl sft`, `herl dpo` and `herl score` print when they are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from herl_megatron.observability.summary import headline_table

if TYPE_CHECKING:
    from herl_megatron.commands.results import EvalResult

_DPO_ROWS = {
    "loss": "loss",
    "accuracy": "pairs with the chosen answer ahead",
    "margin": "reward margin, chosen - rejected",
    "chosen_reward": "reward of the chosen",
    "rejected_reward": "reward of the rejected",
    "chosen_log_prob": "log-prob of the chosen",
    "rejected_log_prob": "log-prob of the rejected",
    "grad_norm": "gradient norm",
}
_NARROW = 72
"""Columns below which the numbers of `herl score` may be broken over two lines, too."""
_SFT_ROWS = {"loss": "loss", "grad_norm": "gradient norm"}


def evaluation_tables(result: EvalResult) -> Group:
    """The means, by source where there are several, then the share of responses that satisfies each
    check, the hardest first."""
    means = _table(f"evaluation of {result.responses} responses", "")
    means.add_row("mean reward", f"[bold]{result.reward:.3f}[/]")
    means.add_row("all satisfied", f"[bold]{result.all_satisfied:.3f}[/]")
    means.add_row("mean length in tokens", f"{result.response_tokens:.1f}")
    style = "yellow" if result.unscored else "default"
    means.add_row(f"[{style}]without a score[/]", f"[{style}]{result.unscored}[/]")
    parts: list[RenderableType] = [means]
    if len(result.per_source) > 1:
        sources = _table("\nmean reward, by source", "")
        for name, reward in sorted(result.per_source.items()):
            sources.add_row(escape(name), f"{reward:.3f}")
        parts.append(sources)
    if result.per_check:
        checks = _table("\nsatisfied, by check", "")
        for name, share in sorted(result.per_check.items(), key=lambda item: (item[1], item[0])):
            credit = f" (mean {result.credit[name]:.3f})" if name in result.credit else ""
            checks.add_row(escape(name), f"{share:.3f}{credit}")
        parts.append(checks)
    return Group(*parts)


def tuning_tables(summary: Mapping[str, Any]) -> Group:
    """The first and the last step of a run of SFT or DPO, each measured on its own rows before it
    learnt from them; below, the held-out numbers, if there are any."""
    name = summary["command"]
    rows = {"sft": _SFT_ROWS, "dpo": _DPO_ROWS}[name]
    parts = [_first_and_last(name.upper(), rows, summary["first"], summary["last"])]
    if summary["measured_on"] is not None:
        parts.append(headline_table(summary))
    return Group(*parts)


def print_policy(table: RenderableType, *, folder: Path, policy: Path, console: Console) -> None:
    """The table of a tuning run, where the policy is and what reads it."""
    console.print(table)
    lines = (f"policy: {policy}", f"use it: model.path={policy}", f"curves: herl report {folder}")
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def score_table(totals: Mapping[str, Any], *, width: int) -> Table:
    """The totals of `herl score`, all rows and source by source; no number is ever cut.

    width: columns of the terminal. Where counts and shares do not fit beside each other the
    counts stay out, which `summary.json` has.
    """
    parts = {"all": totals} | totals.get("by_source", {})
    for counts in (True, False):
        table = _totals(f"{totals['mode']} verdicts", parts, counts=counts, width=width)
        if Console(width=1000).measure(table).maximum <= width:
            break
    return table


def _totals(
    title: str, parts: Mapping[str, Mapping[str, Any]], *, counts: bool, width: int
) -> Table:
    table = _table(title, "responses", "unscored", "reward", "prompt level", "instructions")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.no_wrap, column.overflow = width >= _NARROW, "fold"
    for name, part in parts.items():
        mean = part["mean_reward"]
        table.add_row(
            escape(name),
            str(part["responses"]),
            str(part["unscored"]),
            "-" if mean is None else f"{mean:.4f}",
            _share_text(part["prompt_level"], counts=counts),
            _share_text(part["instruction_level"], counts=counts),
        )
    return table


def _share_text(share: Mapping[str, Any], *, counts: bool) -> str:
    if not share["of"]:
        return "-"
    percent = f"{100 * share['share']:.2f} %"
    return f"{share['satisfied']}/{share['of']} = {percent}" if counts else percent


def _first_and_last(
    title: str, rows: Mapping[str, str], first: Mapping[str, float], last: Mapping[str, float]
) -> Table:
    table = _table(title, "first step", "last step", "change")
    for key, text in rows.items():
        if key in first and key in last:
            values = (f"{first[key]:.4f}", f"{last[key]:.4f}", f"{last[key] - first[key]:+.4f}")
            table.add_row(text, *values)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=any(columns))
    titles: Sequence[str] = ("", *columns)
    for number, text in enumerate(titles):
        table.add_column(text, justify="right" if number else "left")
    return table
