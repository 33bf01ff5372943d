"""What the commands print at their end: the numbers by hand, none of them cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from herl_megatron.commands.benchmark_tables import benchmark_tables
from herl_megatron.commands.doctor import Finding, print_findings
from herl_megatron.commands.results import EvalResult
from herl_megatron.commands.tables import (
    evaluation_tables,
    print_policy,
    score_table,
    tuning_tables,
)


def shown(table: RenderableType, width: int = 80) -> list[str]:
    """The lines, blanks squeezed."""
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_an_evaluation_shows_means_and_the_hardest_check_first() -> None:
    result = EvalResult(
        reward=0.4567, all_satisfied=0.25, responses=8, unscored=2, response_tokens=31.25,
        per_check={"a[b]": 0.75, "judge": 0.125}, per_source={"if": 0.5, "med": 0.25},
    )  # fmt: skip
    lines = shown(evaluation_tables(result))
    for expected in (
        "evaluation of 8 responses", "mean reward 0.457", "all satisfied 0.250",
        "mean length in tokens 31.2", "without a score 2", "judge 0.125", "a[b] 0.750",
        "if 0.500", "med 0.250",
    ):  # fmt: skip
        assert expected in lines, lines
    assert lines.index("judge 0.125") < lines.index("a[b] 0.750")


def test_benchmarks_show_percent_and_what_keeps_them_from_comparing() -> None:
    counts = {"prompts": 541, "responses": 1082, "unscored": 3, "parts": {}}
    numbers = {
        "ifeval": {"headline": "prompt_strict", **counts, "notes": ["few [x] rows"],
                   "metrics": {"prompt_strict": 0.7283, "prompt_loose": 0.7449},
                   "interval": {"prompt_strict": (0.6912, 0.7657)}},
        "gpqa": {"headline": "accuracy", **counts, "metrics": {}, "interval": {},
                 "notes": ["no response has a score"]},
    }  # fmt: skip
    lines = shown(benchmark_tables(numbers))
    for expected in (
        "metric % 95 % prompts responses unscored",
        "IFEval prompt_strict 72.8 69.1 to 76.6 541 1082 3", "prompt_loose 74.5",
        "GPQA accuracy - 541 1082 3", "IFEval: few [x] rows", "GPQA: no response has a score",
    ):  # fmt: skip
        assert expected in lines, lines
    narrow = "".join(shown(benchmark_tables(numbers), width=40)).replace(" ", "")
    assert "\u2026" not in narrow


def test_dpo_and_sft_show_first_and_last_step() -> None:
    first = {"loss": 0.6931, "accuracy": 0.0, "margin": 0.0, "grad_norm": 2.0}
    last = {"loss": 0.5, "accuracy": 0.75, "margin": 1.5, "grad_norm": 1.25}
    lines = shown(tuning_tables(tuned("dpo", first, last)))
    assert "loss 0.6931 0.5000 -0.1931" in lines
    assert "pairs with the chosen answer ahead 0.0000 0.7500 +0.7500" in lines
    lines = shown(tuning_tables(tuned("sft", first, last)))
    assert "loss 0.6931 0.5000 -0.1931" in lines
    assert not any("held-out" in line for line in lines)


@pytest.mark.parametrize(
    ("before", "line"), [(0.25, "mean reward 0.250 0.750 +0.500"), (None, "mean reward - 0.750 -")]
)
def test_what_was_held_out_stands_below(before: float | None, line: str) -> None:
    """A run that was not evaluated from its beginning has no gain."""
    pair = {"before": before, "after": 0.75}
    summary = tuned("sft", {}, {}) | {
        "measured_on": "held-out prompts", "reward": pair, "all_satisfied": pair,
    }  # fmt: skip
    lines = shown(tuning_tables(summary))
    assert "on held-out prompts" in lines and line in lines


def tuned(name: str, first: dict[str, float], last: dict[str, float]) -> dict[str, Any]:
    return {"command": name, "first": first, "last": last, "measured_on": None}


def test_the_policy_can_be_copied_from_a_narrow_terminal() -> None:
    out, folder = io.StringIO(), Path("/a/long/folder/of/runs/with/a/name/that/is/longer")
    console = Console(file=out, width=40)
    print_policy(
        tuning_tables(tuned("sft", {}, {})),
        folder=folder,
        policy=folder / "policy",
        console=console,
    )
    assert f"use it: model.path={folder}/policy\n" in out.getvalue()


def share(satisfied: int, of: int) -> dict[str, Any]:
    return {"satisfied": satisfied, "of": of, "share": satisfied / of}


def totals(mean: float) -> dict[str, Any]:
    part = {
        "responses": 12345, "unscored": 0, "mean_reward": mean,
        "prompt_level": share(5000, 12345), "instruction_level": share(23456, 30000),
    }  # fmt: skip
    return {"mode": "strict", **part, "by_source": {"instruction_following_eval_2311.07911": part}}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_of_a_score_is_cut(width: int) -> None:
    """5000 / 12345 = 40.50 %, 23456 / 30000 = 78.19 %."""
    lines = shown(score_table(totals(0.7125), width=width), width)
    text = "".join(lines).replace(" ", "")
    assert text.count("40.50%") == 2 and text.count("78.19%") == 2 and text.count("0.7125") == 2
    assert "…" not in text
    assert ("5000/12345" in text) == (width == 200)  # beside the share only where both fit


@pytest.mark.parametrize("width", [60, 80, 240])
def test_a_command_of_the_doctor_is_never_broken(width: int) -> None:
    command = "an environment of its own: HERL_VENV=FOLDER bash tools/test.sh " + 20 * "and more "
    findings = [
        Finding("packages", "torch", "ok", "2.13.0"),
        Finding("packages", "vllm", "note", "0.32.0", command.strip()),
        Finding("ray", "port 6379", "ok", "free"),
    ]
    out = io.StringIO()
    print_findings(findings, Console(file=out, width=width))
    text = out.getvalue()
    assert command.strip() in text
    assert text.count("packages") == 1 and "0.32.0" in text and "free" in text
