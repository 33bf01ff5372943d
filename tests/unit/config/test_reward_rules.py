"""Rules of what a user brings for rewards and revision prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from herl_megatron.config.purpose import Purpose
from tests.unit.config.test_validate import files, problems

__all__ = ["files"]  # the fixture: a folder with a model, rows and a configuration


def test_a_group_reward_is_a_function_and_no_replays(files: Path) -> None:
    (problem,) = problems(files, "scoring.group_reward=my_rewards.by_rank")
    assert problem.startswith("scoring.group_reward: 'my_rewards.by_rank' is not of the form")
    good = "scoring.group_reward=my_rewards:by_rank"
    assert problems(files, good) == ()
    (problem,) = problems(files, good, "hindsight.method=replay")
    assert "group_reward is 'my_rewards:by_rank'" in problem and "method 'replay'" in problem
    assert problems(files, good, "hindsight.method=replay", "hindsight.enabled=false") == ()


@pytest.mark.parametrize("purpose", ["train", "improve"])
def test_a_revision_prompt_is_one_file_or_one_style(files: Path, purpose: Purpose) -> None:
    gone, there = files / "gone.txt", files / "revise.txt"
    there.write_text("{instruction} {draft}")
    (problem,) = problems(files, f"hindsight.prompt_file={gone}", purpose=purpose)
    assert problem.startswith("hindsight.prompt_file: ") and "gone.txt" in problem
    given = f"hindsight.prompt_file={there}"
    assert problems(files, given, purpose=purpose) == ()
    (problem,) = problems(files, given, "hindsight.prompt_style=rubric", purpose=purpose)
    assert "revise.txt" in problem and "prompt_style 'rubric'" in problem


def test_a_file_that_is_not_read_need_not_be_there(files: Path) -> None:
    gone = f"hindsight.prompt_file={files / 'gone.txt'}"
    assert problems(files, "hindsight.enabled=false", gone) == ()
    assert problems(files, gone, purpose="eval") == ()
