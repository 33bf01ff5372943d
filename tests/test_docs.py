"""docs/ stays true: its files, commands and configuration are run, its numbers computed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.schema import JudgeConfig, ScoringConfig, TrackingConfig
from herl_megatron.observability.step_lines import StepLines, evaluation_line
from herl_megatron.rubrics.aggregations import RULES
from herl_megatron.rubrics.rubric import score_response, validate_rubric
from herl_megatron.types import Criterion, CriterionResult, Polarity, Rubric, Scored, Verdict
from tests.fake_judge import fake_judge

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """Name (may be empty) and content of every code block of a language."""
    found = re.findall(rf"^```{language} ?(\S*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/scoring.md has no {language} block"
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's named files, as a reader would save them; what is written is compared."""
    for language in ("jsonl", "python", "text"):
        for name, content in blocks(language):
            if name != "scores.jsonl":
                (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, **replaced: str) -> None:
    """A `herl` command as the page gives it."""
    program, *arguments = shlex.split(command)
    assert program == "herl"
    result = CliRunner().invoke(app, [replaced.get(word, word) for word in arguments])
    assert result.exit_code == 0, result.output


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in found:
        assert line.pop("made_from")
    return found


def test_commands_give_what_the_page_shows(folder: Path) -> None:
    (_, rules), (_, judged) = blocks("bash")
    run(rules)
    shown = dict(blocks("jsonl"))["scores.jsonl"]
    assert lines(folder / "scores.jsonl") == [json.loads(line) for line in shown.splitlines()]
    totals = json.loads((folder / "scores.jsonl.summary.json").read_text(encoding="utf-8"))
    assert totals["prompt_level"] == {"satisfied": 1, "of": 3, "share": pytest.approx(1 / 3)}
    with fake_judge() as judge:
        with_template = f"{judged.strip()} --judge-set prompt=my_judge.txt --judge-set cache="
        run(with_template, **{"http://localhost:8000/v1": judge.url})
        asked = judge.requests[-1]["messages"][1]["content"]
    assert asked.startswith("You are a careful pharmacist.")
    (line,) = lines(folder / "judged_scores.jsonl")
    assert line["reward"] == 0.75  # the doctor's 3 of 4, and "always" is there


def test_configuration_is_valid() -> None:
    sections = {name: yaml.safe_load(text) for name, text in enumerate(
        content for _, content in blocks("yaml")
    )}  # fmt: skip
    ScoringConfig.model_validate(sections[0]["scoring"])
    JudgeConfig.model_validate(sections[1]["judge"])


def test_table_of_aggregations() -> None:
    table = re.findall(r"^\| `(\w+)`.*\| ([\d.]*) ?\|$", PAGE, re.MULTILINE)
    assert {name for name, _ in table} == set(RULES)
    wanted: tuple[tuple[str, float, Polarity, str], ...] = (
        ("a", 3, "positive", "Essential"),
        ("b", 1, "positive", "Important"),
        ("n", 2, "negative", "Pitfall"),
    )
    criteria = tuple(
        Criterion(
            name, "judge", description=name, weight=weight, polarity=polarity,
            params={"category": category},
        )
        for name, weight, polarity, category in wanted
    )  # fmt: skip
    results = [
        CriterionResult("a", Verdict.FOLLOWED),
        CriterionResult("b", Verdict.NOT_FOLLOWED),
        CriterionResult("n", Verdict.FOLLOWED),
    ]
    checked = 0
    for name, example in table:
        if example:
            rubric = Rubric(criteria, name)
            validate_rubric(rubric)
            score = score_response(rubric, results)
            assert isinstance(score, Scored)
            assert score.reward == pytest.approx(float(example), abs=1e-5), name
            checked += 1
    assert checked == 5


def test_watching_shows_lines_and_settings_as_they_are() -> None:
    """Its example lines are made by the code, its settings load, its metrics are logged."""
    page = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
    lines = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0].splitlines()
    values = {
        "reward/mean": 0.4123, "reward/all_satisfied": 0.21, "train/loss": 0.0123,
        "train/kl_old_new": 0.0042, "train/grad_norm": 1.5, "rollout/response_tokens": 312.0,
        "perf/tokens_per_s": 12345.6, "time/total_s": 73.5, "time/rollout_s": 41.2,
        "time/train_s": 25.1, "time/other_s": 7.1,
    }  # fmt: skip
    seconds = iter([0.0, 74.03])
    line = StepLines("HeRL", range(11, 1590), now=lambda: next(seconds)).step(11, values)
    assert line == lines[0]
    held_out = {"eval/reward": 0.431, "eval/all_satisfied": 0.25, "eval/response_tokens": 301.0,
                "eval/unscored": 0.0}  # fmt: skip
    assert evaluation_line(20, held_out) == lines[1]
    (settings,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    TrackingConfig.model_validate(yaml.safe_load(settings)["tracking"])
