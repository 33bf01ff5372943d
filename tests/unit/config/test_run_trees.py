"""Commands played against generated trees: whatever was there before and is not herl's own stays as
it was, bit for bit (a run without a checkpoint moves as a whole)."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.load import ConfigError
from herl_megatron.config.purpose import Purpose
from herl_megatron.files.run_files import is_run
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.lock import RunLock
from tests.limits import FULL
from tests.unit.config.run_plays import config, contents, play


class Tree:
    """A generated `run.dir` with runs in every state and a user's files everywhere.

    users: what this class wrote that is not herl's, by path from the root.
    """

    NAMES = ("a", "b", "a/c", "d/e", "d")
    FILES = (
        "notes.txt", "policy/notes.md", "rollouts/mine.jsonl", "rollouts/step_1.jsonl",
        "rollouts/sub/x", "checkpoints/readme", "checkpoints/step_000001.bak/driver.json",
        "tensorboard/old.txt", "my_checks.py", "checkpoints/step_000002/note", "data.jsonl",
        "policy/model.safetensors", "rollouts/step_0000000000009.jsonl", "metrics.jsonl.bak",
        "rollouts/step_\u0660\u0660\u0660\u0660\u0660\u0669.jsonl", "checkpoints/step_2/x",
    )  # fmt: skip
    LOOKING_LIKE_HERLS = ("config.yaml", "metrics.jsonl", "summary.json", "run.log", "eval.json")
    LINKS = (
        "run.log", "summary.json.tmp", "policy", "checkpoints", "other", "rollouts", "run.lock"
    )  # fmt: skip

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root = root
        self.draw = draw
        self.users: set[str] = set()
        (root / "outside").mkdir()
        self._write(root / "outside" / "config.json")
        for name in draw.sample(self.NAMES, 3):
            self._make(name)

    def _write(self, file: Path) -> None:
        inside = [p for p in file.parents if self.root in p.parents and os.path.lexists(p)]
        if os.path.lexists(file) or any(p.is_symlink() or not p.is_dir() for p in inside):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{file.name} is mine")
        self.users.add(str(file.relative_to(self.root)))

    def _make(self, name: str) -> None:
        states = ["user", "begun", "killed", "killed", "saved", "finished", "legacy"]
        state = self.draw.choice(states)
        path = self.root / name
        if state == "user":
            for extra in self.draw.sample(self.LOOKING_LIKE_HERLS, 2):
                self._write(path / extra)
        else:
            try:
                self._run(name, state)
            except ConfigError:  # it would lie in another
                return
        for extra in self.draw.sample(self.FILES, self.draw.randrange(4)):
            self._write(path / extra)
        link = path / self.draw.choice(self.LINKS)
        if self.draw.random() < 0.2 and path.is_dir() and not os.path.lexists(link):
            link.symlink_to(self.root / "outside")
            self.users.add(str(link.relative_to(self.root)))
        if self.draw.random() < 0.2 and path.is_dir():
            (path / self.draw.choice(["policy", "empty", "rollouts"])).mkdir(exist_ok=True)

    def _run(self, name: str, state: str) -> None:
        if state == "begun":
            with RunFolder.create(config(self.root, name)):
                pass
            return
        play(config(self.root, name), steps=3, save_at=0 if state == "killed" else 2)
        if state in ("killed", "saved"):
            (self.root / name / "summary.json").unlink()
        if state == "legacy":
            (self.root / name / "herl_run.json").unlink()


def without_locks(found: dict[str, bytes | str]) -> dict[str, bytes | str]:
    return {key: value for key, value in found.items() if not key.endswith("run.lock")}


@pytest.mark.parametrize("part", range(16 if FULL else 1))
def test_nothing_that_is_not_herls_is_ever_changed(tmp_path: Path, part: int) -> None:
    started = moved = 0
    for number in range(part * 60, part * 60 + 60):
        draw = random.Random(number)
        root = tmp_path / str(number)
        root.mkdir()
        tree = Tree(root, draw)
        name = draw.choice([*Tree.NAMES, *Tree.NAMES, "", ".", "..", "new", "a/new", "d/e/f"])
        resume: dict[str, Any] = {"resume": True}
        how = draw.choice([{}, resume, resume, {"overwrite": True}])
        purpose: Purpose = draw.choice(["train", "train", "train", "eval", "sft", "improve"])
        held = draw.random() < 0.1 and is_run(root / name)
        lock = RunLock.take(root / name) if held else None
        before = contents(root)
        try:
            if purpose == "train":
                play(config(root, name, **how), save_at=draw.randrange(6))
            else:
                with RunFolder.create(config(root, name, **how), purpose=purpose) as folder:
                    folder.take_back()
                    folder.log(0, {"eval/reward": 0.5})
            started += 1
        except ValueError:
            left = without_locks(contents(root))
            assert left == without_locks(before), f"tree {number}: refused, and changed something"
            continue
        finally:
            if lock is not None:
                lock.release()
        assert lock is None, f"tree {number}: a living run was joined"
        after, aside = contents(root), f"{name}.before-1"
        was_moved = (root / aside).exists()
        moved += was_moved
        for key in tree.users:
            inside = key.startswith(f"{name}/")
            where = key.replace(name, aside, 1) if was_moved and inside else key
            assert after.get(where) == before[key], f"tree {number}: {key} is not as it was"
        for key in before:  # of other runs nothing changes at all
            if key != name and not key.startswith(f"{name}/"):
                assert after.get(key) == before[key], f"tree {number}: {key} of another run"
    assert started > 15 and moved > 0
