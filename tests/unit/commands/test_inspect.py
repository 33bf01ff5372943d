"""Browsing rollouts: what is shown, chosen and refused, and when piped."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herl_megatron.commands import inspect as inspect_rollouts
from tests.unit.report.run_folders import group, make_run, response, write_step

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tools/inspect_rollouts.py"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = make_run(tmp_path, seed=0, lines=[{"step": 0, "reward/mean": 0.5}])
    revision = response(0, ["c1", "c2"], [], text="be so kind", parent=0, accepted=True, replaces=1)
    failed = group("bad", [response(0, ["c1"], ["c2"], text="be kind"), response(1, [], [])])
    write_step(path, 0, [group("early", [response(0, ["c1"], ["c2"])])])
    write_step(
        path, 7,
        [failed | {"revisions": [revision]}, group("good", [response(0, ["c1", "c2"], [])])],
    )  # fmt: skip
    return path


def browse(path: Path, **options: object) -> tuple[int, str]:
    given = {"step": None, "prompt": "", "failed": False, "accepted": False, "count": 3}
    out = io.StringIO()
    shown = inspect_rollouts.browse(
        Namespace(path=path, **(given | options)), Console(file=out, width=100)
    )
    return shown, out.getvalue()


def test_a_group_is_shown_with_verdicts_and_changes(run: Path) -> None:
    shown, text = browse(run, prompt="bad")
    assert shown == 1
    for said in (
        "step_000007  bad", "user: Write.", "rollout 0: reward 0.5", "+ Use lowercase.",
        "- Be polite. (no)", "rollout 1: no reward", "unscored: judge: HTTP 401",
        "revision of rollout 0: reward 0.5 -> reward 1, joined in place of rollout 1",
        "be {+so+} kind",
    ):  # fmt: skip
        assert said in text, said


def test_a_replay_is_shown_with_its_instruction_and_counts_as_accepted(run: Path) -> None:
    record = group("hir", [response(0, ["c1"], ["c2"], text="be kind")])
    replay = {"of": 0, "prompt": "user: Use lowercase.", "satisfied": ["c1"]}
    trained = record | {
        "replays": [replay | {"row": {"reward": 1.0, "advantage": 0.5, "weight": 1.0}}]
    }
    path = write_step(run, 8, [trained, record | {"prompt_id": "plain"}])
    shown, text = browse(path, accepted=True)
    assert shown == 1
    said = "replay of rollout 0 as a success: reward 1, advantage +0.50"
    assert said in text and "user: Use lowercase." in text.split(said)[1]
    _, text = browse(write_step(run, 9, [record | {"replays": [replay]}]))
    assert "replay of rollout 0 as a success: the run stopped before the join" in text
    shown, text = browse(write_step(run, 9, [record | {"replays": [replay | {"row": None}]}]))
    assert "replay of rollout 0 as a success: did not join" in text
    left_out = write_step(run, 9, [record | {"replays": [replay | {"row": None}]}])
    assert browse(left_out, accepted=True)[0] == 0


def test_all_turns_of_a_conversation_are_shown(run: Path) -> None:
    turns = [
        {"drawn": True, "text": "A draft.", "tokens": 3},
        {"drawn": False, "text": "Shorter!", "tokens": 2},
        {"drawn": True, "text": "Short.", "tokens": 2},
    ]
    talk = response(0, ["c1"], ["c2"], text="Short.") | {"turns": turns}
    _, text = browse(write_step(run, 9, [group("talk", [talk])]))
    places = [text.index(said) for said in ("A draft.", "Shorter!", "Short. ")]
    assert places == sorted(places)
    broken = talk | {"turns": [{"drawn": "yes", "text": ""}]}
    with pytest.raises(ValueError, match=r"rollouts\.0\.turns\.0\.drawn"):
        browse(write_step(run, 9, [group("talk", [broken])]))


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({}, ["bad", "good"]),  # the newest step
        ({"step": 0}, ["early"]),
        ({"failed": True}, ["bad"]),
        ({"accepted": True}, ["bad"]),
        ({"count": 1}, ["bad"]),
        ({"step": 0, "accepted": True}, []),
    ],
)
def test_what_is_chosen(run: Path, options: dict[str, Any], prompts: list[str]) -> None:
    shown, text = browse(run, **options)
    assert shown == len(prompts)
    assert [p for p in ("bad", "early", "good") if f"  {p} " in text] == sorted(prompts)
    assert ("there are more" in text) == (options == {"count": 1})


def test_text_cannot_command_the_terminal(run: Path) -> None:
    path = write_step(run, 9, [group("p", [response(0, ["c1"], [], text="a\x1b[2Jb [red]c")])])
    _, text = browse(path)
    assert "\x1b" not in text and "a\\x1b[2Jb [red]c" in text


def test_refusals(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rollouts of step 3, it has step_000000 to step_00000"):
        browse(run, step=3)
    with pytest.raises(ValueError, match="no such file or run"):
        browse(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no rollouts"):
        browse(tmp_path)


def test_piped_and_empty(run: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(run)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    empty = subprocess.run(
        [*command, "--prompt", "x"], capture_output=True, text=True, env=environment
    )
    assert (empty.returncode, empty.stdout) == (1, "")
    assert "no group in" in empty.stderr and "matches" in empty.stderr
    piped = subprocess.run(
        f"{shlex.join(command)} --count 99 | head -n 1",
        shell=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert "bad" in piped.stdout and piped.stderr == ""
