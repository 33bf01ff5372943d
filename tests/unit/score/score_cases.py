"""Rows, and `herl score` over them, as several test modules need it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from herl_megatron.cli import app

NO_COMMA = {"id": "comma", "kind": "rule", "check": "ifeval/punctuation:no_comma"}


TITLE = {"id": "title", "kind": "rule", "check": "ifeval/detectable_format:title", "weight": 3}


def row(name: str, criteria: list[dict[str, Any]], **responses: Any) -> dict[str, Any]:
    return {
        "id": name,
        "messages": [{"role": "user", "content": "Write about owls."}],
        "rubric": {"criteria": criteria},
        "source": name[0],
        **responses,
    }


ROWS = [
    row("a1", [NO_COMMA, TITLE], response="<<Owls>> are old, I think."),  # 3 of 4
    row("a2", [NO_COMMA, TITLE], response="**<<Owls>>** rest."),  # both
    row("b1", [NO_COMMA], responses=["One, two.", "Three."]),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def score(source: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["score", str(source), "--out", str(out), *more])


def scored(source: Path, out: Path, *more: str) -> dict[str, Any]:
    """The totals of a run that must succeed."""
    result = score(source, out, *more)
    assert result.exit_code == 0, result.output
    return read_totals(out)


def read_totals(out: Path) -> dict[str, Any]:
    return dict(json.loads(out.with_name(out.name + ".summary.json").read_text(encoding="utf-8")))


def share(part: Mapping[str, Any]) -> tuple[int, int]:
    return part["satisfied"], part["of"]


def says(word: str, **more: Any) -> dict[str, Any]:
    return {
        "id": word, "kind": "judge", "description": f'The response contains the word "{word}".',
        **more,
    }  # fmt: skip
