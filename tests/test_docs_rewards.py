"""docs/extending_rewards.md stays true: its files are written as a reader would, and run."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from herl_megatron.cli import app
from herl_megatron.config.load import load_config
from herl_megatron.data.canonical_rows import prompt_from_row
from herl_megatron.hindsight.prompt_file import _PLACEHOLDERS, revision_form
from herl_megatron.hindsight.revision_prompts import revision_messages
from herl_megatron.rubrics.group_reward import GroupReward, RewardedScorer
from herl_megatron.types import Message, Prompt, Rubric, Score, Scored
from tests.pages import ROOT, blocks
from tests.unit.rollout.fakes import CRITERIA, FakeScorer

PAGE = "docs/extending_rewards.md"
OURS = [block for block in blocks() if block.page == PAGE]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's named files, where the test runs."""
    for block in OURS:
        if block.name:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Constant(FakeScorer):
    """A rubric of which every response is worth 1."""

    def score(self, text: str) -> Score:
        return Scored(1.0, (), ("c0",), ())


def test_the_check_gives_the_rewards_that_the_page_says(folder: Path) -> None:
    out = folder / "scores.jsonl"
    arguments = ["score", "rows.jsonl", "--out", str(out), "--check-module", "my_lengths"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    first, second = json.loads(out.read_text())["responses"]
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    (shown,) = re.findall(r"rewards are ([\d.]+) and [\d/* ]+ = ([\d.]+)\.", text)
    assert [first["reward"], second["reward"]] == [float(value) for value in shown]
    assert second["verdicts"][0] == {"id": "length", "verdict": "not_followed", "grade": 0.625}


def test_the_reward_of_a_group(folder: Path) -> None:
    """Lengths 2 and 6, mean 4: 1 + 0.1 * 0.5 and 1 - 0.1 * 0.5; no text is all of that shorter."""
    config = load_config(_yaml(folder, "scoring"))
    reward = GroupReward(config.scoring)
    try:
        reward.start()
        scorer = RewardedScorer(Constant(), reward)
        prompt = Prompt("p", (Message("user", "Write."),), Rubric(CRITERIA))
        for texts, expected in ((["ab", "abcdef"], [1.05, 0.95]), (["", ""], [1.1, 1.1])):
            scores = asyncio.run(scorer.score_group(prompt, texts))
            assert [s.reward for s in scores if isinstance(s, Scored)] == expected
    finally:
        reward.close()


def test_the_revision_prompt(folder: Path) -> None:
    form = revision_form(load_config(_yaml(folder, "hindsight")).hindsight)
    (line,) = (folder / "rows.jsonl").read_text().splitlines()
    row = {key: value for key, value in json.loads(line).items() if key != "responses"}
    row["rubric"]["criteria"] = row["rubric"]["criteria"][1:]  # whose check is not the page's own
    prompt = prompt_from_row(row)
    (message,) = revision_messages(prompt, "Owls, owls.", [], prompt.rubric.criteria, form)
    assert message.content == (
        "Tell me of owls, in about eight words, without commas.\n\n"
        "A first attempt:\nOwls, owls.\n\nIt does this already:\nnone\n"
        "It still has to do this:\n- Do not use commas.\n\n"
        "Write the whole improved answer and nothing else."
    )


def test_the_page_names_every_placeholder() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert re.findall(r"^\| `\{(\w+)\}` \|", text, re.MULTILINE) == list(_PLACEHOLDERS)


def test_examples_are_short() -> None:
    code = [block for block in OURS if block.language in ("python", "text")]
    assert len(code) == 3
    for block in code:
        lines = [line for line in block.text.splitlines() if line.strip()]
        assert len(lines) <= 10, block.name


def _yaml(folder: Path, section: str) -> Path:
    (text,) = [b.text for b in OURS if b.language == "yaml" and section in yaml.safe_load(b.text)]
    path = folder / f"{section}.yaml"
    path.write_text(text, encoding="utf-8")
    return path
