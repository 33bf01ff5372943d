"""README.md stays true: its example runs, its figures are measured, and it is short.

Links, files and commands of all pages: test_docs_links.py, test_docs_snippets.py.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from herl_megatron.config.load import load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.validate import validate
from herl_megatron.data.prompt_source import load_prompts
from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.rubrics.checks.registry import (
    forget_user_checks,
    load_check_modules,
    run_check,
)
from herl_megatron.rubrics.rubric import describe, score_response
from herl_megatron.run.inputs import load_inputs
from herl_megatron.types import Scored

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The README's first code block in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no {language} block"
    return found[1]


def own_data(folder: Path) -> list[str]:
    """The example's files in `folder`, as pasted, and the words of its command."""
    (folder / "my_checks.py").write_text(block("python"))
    (folder / "haiku.jsonl").write_text(block("json"))
    (command,) = re.findall(r"^herl train .*haiku\.jsonl(?:.*\\\n)*.*$", README, re.MULTILINE)
    return shlex.split(command.replace("\\\n", ""))


def test_own_data_and_check_example_scores_a_haiku(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its command passes all that is asked before a process starts, with nothing added to it;
    tests/e2e/test_own_data.py trains."""
    words = own_data(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    load_check_modules(["my_checks"])
    (prompt,) = load_prompts(str(tmp_path / "haiku.jsonl"))
    assert describe(prompt.rubric.criteria[0]) == "Write exactly 3 lines."
    results = [
        run_check(criterion, "one, two\nthree\nfour") for criterion in prompt.rubric.criteria
    ]
    score = score_response(prompt.rubric, results)
    assert isinstance(score, Scored)
    assert score.reward == 2 / 3  # three lines (weight 2 of 3), but a comma

    write_toy_task(tmp_path / "toy", seed=0, train_prompts=4, heldout_prompts=2, sft_rows=4)
    (tmp_path / "runs/quickstart/sft").mkdir(parents=True)
    (tmp_path / "runs/quickstart/sft/policy").symlink_to(tmp_path / "toy/model")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    config = load_config(Path(words[2]), words[3:])
    validate(config, purpose="train", machine=Machine(shared_memory_bytes=64 << 20))
    assert load_inputs(config, training=True).train == (prompt,)
    assert config.scoring.check_modules == ("my_checks",)
    forget_user_checks()
    assert "my_checks" not in sys.modules  # a user's code is imported in a child process alone


def test_one_can_read_it_in_a_few_minutes() -> None:
    assert len(README.split()) <= 1400


def test_its_figures_are_those_of_the_results() -> None:
    """At most five, each of them in docs/results.md as well."""
    table = README.partition("## Five figures")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!what|-)(.*) \| (.*) \|$", table, re.MULTILINE)
    results = (ROOT / "docs/results.md").read_text()
    assert 1 <= len(rows) <= 5
    for what, figure in rows:
        for number in re.findall(r"\d+\.\d+x?|\d+ %|\d+ of \d+", figure):
            assert number in results, f"{what}: {number}"
