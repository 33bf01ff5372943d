"""README.md stays true: its example runs, and every path that it names exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from herl_megatron.data.prompts import load_prompts
from herl_megatron.rubrics.checks.registry import load_check_modules, run_check
from herl_megatron.rubrics.rubric import describe, score_response
from herl_megatron.types import Scored

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The README's first code block in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no {language} block"
    return found[1]


def test_own_data_and_check_example_scores_a_haiku(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_checks.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    load_check_modules(["my_checks"])
    (tmp_path / "haiku.jsonl").write_text(block("json").replace("\n", " "))
    (prompt,) = load_prompts(str(tmp_path / "haiku.jsonl"))
    assert describe(prompt.rubric.criteria[0]) == "Write exactly 3 lines."
    results = [
        run_check(criterion, "one, two\nthree\nfour") for criterion in prompt.rubric.criteria
    ]
    score = score_response(prompt.rubric, results)
    assert isinstance(score, Scored)
    assert score.reward == 2 / 3  # three lines (weight 2 of 3), but a comma
    del sys.modules["my_checks"]


def test_named_files_exist() -> None:
    package = ROOT / "herl_megatron"
    names = re.findall(r"`([\w/.*-]+(?:/|\.py|\.sh|\.md|\.yaml))`|\]\((configs/[^)]+)\)", README)
    # What a run writes, and the reader's own files, are not in the repository.
    written = ("runs/", "checkpoints/", "rollouts/", "policy/", "tensorboard/", "config.yaml")
    for name in {first or second for first, second in names}:
        if name.startswith(written):
            continue
        patterns = [name.rstrip("/"), f"*/{name.rstrip('/')}"]
        found = [path for base in (ROOT, package) for one in patterns for path in base.glob(one)]
        assert found, f"README.md names {name}, which does not exist"
