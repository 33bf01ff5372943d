"""docs/examples: the script and the notebook's cells are run as they stand."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import herl_megatron
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
pytestmark = pytest.mark.e2e

# As a kernel does it: each cell is compiled by itself and run in a thread whose loop is running.
_KERNEL = """
import asyncio, json, sys

async def run_cells(cells):
    names = {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell, "cell", "exec"), names)

asyncio.run(run_cells(json.load(open(sys.argv[1], encoding="utf-8"))))
"""


def run(tmp_path: Path, *arguments: str | Path) -> str:
    """What a process says that starts in a folder with the repository's configs; it leaves none."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    marker = {"HERL_TEST_MARKER": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | marker, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    left = [p.pid for p in psutil.process_iter(["environ"])
            if (p.info["environ"] or {}).get("HERL_TEST_MARKER") == str(tmp_path)]  # fmt: skip
    assert left == []
    return done.stdout


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]


def code_cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "from_python.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def test_script(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run(tmp_path, EXAMPLES / "from_python.py", out)
    first, second = (line["sft/loss"] for line in metrics(out / "sft"))
    assert second < first < 8.5  # random weights: about ln of the vocabulary
    (evaluated,) = metrics(out / "evaluation")
    expected = [
        f"step 0: loss {first:.3f}",
        f"step 1: loss {second:.3f}",
        f"4 held-out responses: mean reward {evaluated['eval/reward']:.3f}",
        "mean reward of the 2 answers about rivers: 0.5",
    ]
    # Between them stand the tables that a run ends with.
    assert [line for line in said.splitlines() if line in expected] == expected


def test_notebook(tmp_path: Path) -> None:
    (tmp_path / "cells.json").write_text(json.dumps(code_cells()), encoding="utf-8")
    (tmp_path / "kernel.py").write_text(_KERNEL, encoding="utf-8")
    said = run(tmp_path, tmp_path / "kernel.py", tmp_path / "cells.json").splitlines()
    runs = tmp_path / "runs/notebook"
    before, after = (
        line["eval/reward"] for line in metrics(runs / "one_step") if "eval/reward" in line
    )
    # What comes before is the run's own table.
    assert said[-3] == f"held-out reward {before:.3f} -> {after:.3f}"
    assert {"eval/reward", "eval/all_satisfied"} <= set(said[-2].split(", "))
    assert said[-1] == "mean reward 0.5"


def test_pages_name_what_the_package_exports() -> None:
    """The examples import, and docs/python.md lists, what there is."""
    sources = [(EXAMPLES / "from_python.py").read_text(encoding="utf-8"), *code_cells()]
    used = {
        alias.name
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "herl_megatron"
        for alias in node.names
    }
    assert {"prepare", "train", "evaluate", "score", "sft"} <= used <= set(herl_megatron.__all__)
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)
    assert sorted(listed) == sorted({*herl_megatron.__all__} - {"PreparedConfig"})
    for name in listed:
        (given,) = re.findall(rf"^\| `{name}\((.*?)\)` \|", page, re.MULTILINE)
        has = inspect.signature(getattr(herl_megatron, name)).parameters
        assert re.findall(r"\w+(?=[=,]|$)", re.sub(r"=[^,]+", "", given)) == list(has)
