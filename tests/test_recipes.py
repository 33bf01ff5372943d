"""The data command in the header of every GPU configuration makes what that file starts on."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from herl_megatron.config.load import load_config
from herl_megatron.data.sources.catalog import SOURCES
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.run.inputs import load_inputs
from tests.limits import HANG_S

ROOT = Path(__file__).parents[1]
PARTS = ("models", "tasks", "scale", "presets", "methods", "benchmarks")
FILES = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if "_cpu" not in path.name and path.parent.name not in PARTS
)
HIR_TYPES = {"type1": 6549, "type2": 449, "type3": 3608, "type4": 6362}
"""Rows of HIR-16K as published; type 4 is code, which only a judge can stand in for."""
MEDICAL_TRAIN = 17_926
"""Rows of RaR-Medicine's own train split."""
HUB = {"hir": "sastpg/HIR-16K", "rar_medicine": "ScaleAI/RaR-Medicine"}


def header(path: Path) -> str:
    """The comments of a file and of those that it extends."""
    text = path.read_text()
    extended = yaml.safe_load(text).get("extends", [])
    own = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    return "\n".join([own, *(header(path.parent / name) for name in extended)])


def data_command(path: Path) -> str:
    """What the header says to run before: a file's own line, or that of what it extends."""
    own = [line for line in path.read_text().splitlines() if line.startswith("# Data: herl data ")]
    command: str
    (command,) = re.findall(r"^# Data: herl (data .*)$", own[0] if own else header(path), re.M)
    return command


def hir_rows() -> list[dict[str, Any]]:
    """100 rows of each type, in the data set's form; one of type 3 has nothing to check."""
    truths = {
        "type1": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]},
        "type2": {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 2}]},
        "type3": {"constraints": [["Length", "Words", "At most 50 words"]],
                  "constraint_pattern": "Listing"},
        "type4": {"checker": ["[rule] Has a title", "[llm] Is kind"], "functions": ["1/0", ""]},
    }  # fmt: skip
    rows = [
        {"id": f"{kind}-{i}", "prompt": f"Write about {kind} number {i}.", "source": kind,
         "criteria": ["Words."] * (2 if kind == "type4" else 1),
         "ground_truth": json.dumps(truth)}
        for kind, truth in truths.items()
        for i in range(100)
    ]  # fmt: skip
    odd = {"constraints": [["Length", "Words", "Be concise"]], "constraint_pattern": "Listing"}
    next(r for r in rows if r["id"] == "type3-0")["ground_truth"] = json.dumps(odd)
    return rows


def medical_rows(split: str, count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What helps against {split} {i}?", "reference_answer": "Rest.",
         "question_source": "x", "rubric_count": 1, "rubric": [
             {"title": "Rest", "description": "Essential Criteria: Recommends rest.", "weight": 5}]}
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a model and the data sets as they come."""
    folder = tmp_path_factory.mktemp("recipes")
    write_toy_task(folder / "toy", seed=0, train_prompts=4, heldout_prompts=2, sft_rows=4)
    template = folder / "toy/model/chat_template.jinja"  # reads what those of hybrid models read
    template.write_text("{%- if enable_thinking %}{% endif %}" + template.read_text())
    files = {"hir": hir_rows(), "rar_train": medical_rows("train", 200),
             "rar_test": medical_rows("test", 20)}  # fmt: skip
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@cache
def prepare(command: str, place: Path) -> None:
    """Run a header's command in `place`, with a file for the name on the Hub."""
    words = shlex.split(command)
    at = words.index("--input") + 1
    assert words[at] == HUB[words[1]]
    given = {"hir": ["hir.jsonl"], "rar_medicine": ["train=rar_train.jsonl", "test=rar_test.jsonl"]}
    inputs = [word for name in given[words[1]] for word in ("--input", name)]
    words[at - 1 : at + 1] = inputs
    done = subprocess.run(
        [sys.executable, "-m", "herl_megatron.cli", *words], cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_starts_on_the_data_that_its_header_prepares(
    path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads the rows and everything else that is asked before a process starts, as it stands: no
    key but the model's folder is given here."""
    prepare(data_command(path), place)
    monkeypatch.chdir(place)
    config = load_config(path, [f"model.path={place}/toy/model"])
    inputs = load_inputs(config, training=True)
    kinds = {c.kind for prompt in (*inputs.train, *inputs.eval) for c in prompt.rubric.criteria}
    if "_if" in path.name:
        # 2 % of 299 different prompts: 400 less those of type 4 and the one without a check.
        assert (len(inputs.train), len(inputs.eval)) == (293, 6) and kinds == {"rule"}
        assert not config.judge.base_url
    else:
        assert (len(inputs.train), len(inputs.eval)) == (200, 20) and kinds == {"judge"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_steps_are_the_epochs_that_its_header_states(path: Path) -> None:
    """Worked out from the published counts, to the next whole step."""
    config, said = load_config(path), header(path)
    if "_if" in path.name:
        epochs, rows = 6, sum(n for kind, n in HIR_TYPES.items() if kind != "type4")
        assert (
            f"{rows:,} rows of types 1 to 3" in said and f"{HIR_TYPES['type4']:,} of type 4" in said
        )
        everything = sum(HIR_TYPES.values())
        whole = everything - round(SOURCES["hir"].eval_share * everything)
        assert f"(with type 4: {math.ceil(epochs * whole / 64):,})" in said
        prompts = rows - round(SOURCES["hir"].eval_share * rows)
    else:
        epochs, prompts = 3, MEDICAL_TRAIN
    assert config.train.prompts_per_step == 64
    steps = epochs * prompts / 64
    assert f"{epochs} epochs of" in said and f"{prompts:,} prompts" in said
    assert f"at 64 a step are {steps:.1f}" in said
    assert f"so {math.ceil(steps)} steps" in said.replace("# ", "")
    assert (config.train.steps, config.train.epochs) == (None, epochs)


def test_the_page_about_data_prepares_the_same() -> None:
    page = (ROOT / "docs/data.md").read_text()
    for command in {data_command(path) for path in FILES}:
        assert f"herl {command}" in page
