"""Data, checks, rewards and revision prompts of one's own, pasted from the pages and trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG_S
from tests.pages import blocks
from tests.test_readme import ROOT, own_data

pytestmark = pytest.mark.e2e


def test_the_examples_train(toy: Path, tmp_path: Path) -> None:
    """README.md's row, check and command, and with them all that docs/extending_rewards.md brings:
    a check that returns a number, a reward over the group, a revision prompt. One run, because it
    takes half a minute; every number again."""
    words = own_data(tmp_path)
    for block in blocks():
        if block.page == "docs/extending_rewards.md" and block.name:
            (tmp_path / block.name).write_text(block.text)
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    plain = json.dumps({key: value for key, value in row.items() if key != "responses"})
    (tmp_path / "both.jsonl").write_text((tmp_path / "haiku.jsonl").read_text() + plain + "\n")
    (tmp_path / "runs/quickstart/sft").mkdir(parents=True)
    (tmp_path / "runs/quickstart/sft/policy").symlink_to(toy / "model")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    program = [sys.executable, "-m", "herl_megatron.cli"]
    assert words[0] == "herl"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/_supervise.py"), *program, *words[1:],
         "data.train=both.jsonl", "scoring.check_modules=[my_checks, my_lengths]",
         "train.prompts_per_step=2", "train.prompts_per_optimizer_step=2",
         "scoring.group_reward=my_rewards:shorter_wins", "hindsight.prompt_file=my_revision.txt",
         "hindsight.threshold=2", "hindsight.accept=not_worse", "hindsight.select=all_failed"],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs/quickstart/haiku"
    groups = [json.loads(line) for line in (run / "rollouts/step_000001.jsonl").open()]
    assert {group["prompt_id"] for group in groups} == {"haiku-1", "owls"}
    rewards = []
    for group in groups:
        by_rubric = _haiku if group["prompt_id"] == "haiku-1" else _owls
        rewards += _looked_at(group, by_rubric)
        if by_rubric is _owls:
            values = [_near_length(rollout["text"]) for rollout in group["rollouts"]]
            grades = [r["verdicts"][0]["grade"] for r in group["rollouts"]]
            assert grades == pytest.approx(values)
    numbers = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert numbers["reward/rubric_mean"] == pytest.approx(sum(rewards) / 16)
    assert numbers["reward/credit/mine/near_length"] == pytest.approx(sum(values) / 8)
    assert numbers["scoring/group_reward_failures"] == 0


def _looked_at(group: dict[str, Any], by_rubric: Callable[[str], float]) -> list[float]:
    """The rubric's rewards of the rollouts, all rewards being as they must."""
    texts = [rollout["text"] for rollout in group["rollouts"]]
    assert len(texts) == 8 and group["revisions"]
    for place, rollout in enumerate(group["rollouts"]):
        assert rollout["rubric_reward"] == pytest.approx(by_rubric(texts[place]))
        assert rollout["reward"] == pytest.approx(_shorter_wins(texts, place, by_rubric))
    for revision in group["revisions"]:
        place = revision["parent"]
        shown = f"\n\nA first attempt:\n{texts[place]}\n\nIt does this already:\n"
        assert shown in revision["experience"]
        inside = [*texts[:place], revision["text"], *texts[place + 1 :]]
        assert revision["reward"] == pytest.approx(_shorter_wins(inside, place, by_rubric))
    return [rollout["rubric_reward"] for rollout in group["rollouts"]]


def _shorter_wins(texts: Sequence[str], place: int, by_rubric: Callable[[str], float]) -> float:
    of_mean = len(texts[place]) * len(texts) / sum(map(len, texts))
    return by_rubric(texts[place]) - 0.1 * (of_mean - 1)


def _haiku(text: str) -> float:
    """Two thirds for three lines, one for no comma; blank text does nothing."""
    return (2 * (len(text.strip().splitlines()) == 3) + _no_comma(text)) / 3


def _owls(text: str) -> float:
    """Three quarters for about eight words, one for no comma."""
    return 0.75 * _near_length(text) + 0.25 * _no_comma(text)


def _no_comma(text: str) -> bool:
    return "," not in text and bool(text.strip())


def _near_length(text: str) -> float:
    return max(0.0, 1 - abs(len(text.split()) - 8) / 8) if text.strip() else 0.0
