"""How a run begins in a folder: which names are refused, what is used again, what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config.load import ConfigError
from herl_megatron.config.paths import plan_start
from herl_megatron.config.schema import (
    AlgorithmConfig,
    Config,
    DataConfig,
    ModelConfig,
    RunConfig,
    ScoringConfig,
    TrainConfig,
)
from herl_megatron.files.run_files import checkpoint_folders, is_run
from herl_megatron.run.checkpoints import (
    find_checkpoint,
)
from herl_megatron.run.folder import RunFolder
from herl_megatron.run.lock import RunLock
from tests.unit.config.run_plays import config, contents, play, save


def test_names_that_would_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    for name in ("", " ", "\t", ".", "..", "../x", "x/..", "x/../y", "./x", "x//y", "x/", "a/./b",
                 "/tmp/x", " x", "x ", "a/ /b", "x\n", "x\x00y"):  # fmt: skip
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=r"run\.name is "):
                plan_start(config(tmp_path, name, **how), purpose="train")
    for name in ("x", "a/b", ".hidden", "..x", "x y", "7b-if.2", "läuft"):
        assert plan_start(config(tmp_path, name), purpose="train") == "new"
    with pytest.raises(ConfigError, match=r"run\.dir is empty"):
        plan_start(Config(run=RunConfig(dir=""), model=ModelConfig(path="m")), purpose="train")


def test_no_run_contains_another_or_lies_in_one(tmp_path: Path) -> None:
    play(config(tmp_path, "a/b"), save_at=1)
    play(config(tmp_path, "c"), save_at=1)
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match="contains another run.*a/b"):
            plan_start(config(tmp_path, "a", **how), purpose="train")
        with pytest.raises(ConfigError, match="lies in another run"):
            plan_start(config(tmp_path, "c/d", **how), purpose="train")
        with pytest.raises(ConfigError, match="lies in another run"):
            plan_start(config(tmp_path / "c" / "policy", "d", **how), purpose="train")
    (tmp_path / "c" / "herl_run.json").unlink()  # as an earlier version left it
    with pytest.raises(ConfigError, match="lies in another run"):
        plan_start(config(tmp_path, "c/d"), purpose="train")
    for name in ("run.lock", "checkpoints"):  # a user's own folder with a config.yaml is no run
        path = tmp_path / "c" / name
        path.unlink() if path.is_file() else path.rename(tmp_path / "elsewhere")
    assert plan_start(config(tmp_path, "c/d"), purpose="train") == "new"


def test_groups_that_are_to_be_learnt_from_are_not_removed(tmp_path: Path) -> None:
    """Learning from a run's kept groups under that run's own name would delete them first."""
    play(config(tmp_path, "a"), save_at=1)
    kept = tmp_path / "a" / "rollouts" / "step_000000.groups.gz"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"")
    for start in (tmp_path / "a", kept):
        train = TrainConfig(only="learning", groups_from=str(start))
        again = config(tmp_path, "a", overwrite=True).model_copy(update={"train": train})
        with pytest.raises(ConfigError, match=r"train\.groups_from: .* lies in .*another run.name"):
            plan_start(again, purpose="train")
        other = config(tmp_path, "b").model_copy(update={"train": train})
        assert plan_start(other, purpose="train") == "new"
    assert kept.is_file()


@pytest.mark.parametrize("part", ["x" * 241, "ä" * 121, "x" * 300])
def test_names_leave_room_for_those_that_herl_makes(tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name is .* more than 240 bytes"):
        plan_start(config(tmp_path, part), purpose="train")
    with pytest.raises(ConfigError, match=r"run\.dir has a name of more than 240 bytes"):
        plan_start(config(tmp_path / part), purpose="train")
    longest = "y" * 240
    for _ in range(2):
        with RunFolder.create(config(tmp_path, longest, resume=True)) as folder:
            folder.log(0, {"reward/mean": 0.5})
    assert (tmp_path / f"{longest}.before-1").is_dir()


def test_places_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for folder, name, said in (
        (tmp_path / "file", "run", "lies below .*file, which is a file"),
        (tmp_path / "nowhere", "run", "lies below .*nowhere, which leads to nothing"),
        (tmp_path, "file", "is a file"),
        (tmp_path, "nowhere", "is a link to nothing"),
        (Path("a\x00b"), "run", r"run\.dir is 'a\\x00b'"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan_start(config(folder, name), purpose="train")


def test_a_link_to_a_run_is_not_moved_in_its_place(tmp_path: Path) -> None:
    with RunFolder.create(config(tmp_path, "real")) as folder:
        folder.log(0, {"reward/mean": 0.5})
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="is a link, so they cannot be moved aside"):
        RunFolder.create(config(tmp_path, resume=True))


def test_inputs_are_not_taken_from_under_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(config(tmp_path), save_at=0)
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    (run / "mine.jsonl").write_text("{}")
    (run / "my_checks.py").write_text("")

    def start(how: str, **sections: Any) -> str:
        settings = Config(
            run=RunConfig(dir=str(tmp_path), name="run", **{how: True}),
            **({"model": ModelConfig(path="/toy")} | sections),
        )
        return plan_start(settings, purpose="train")

    data = DataConfig(train=str(run / "mine.jsonl"))
    assert start("overwrite", data=data) == "replace"  # it stays
    with pytest.raises(ConfigError, match=r"data\.train: .* would delete or move"):
        start("resume", data=data)
    with pytest.raises(ConfigError, match=r"model\.path: .* would delete or move"):
        start("overwrite", model=ModelConfig(path=str(run / "policy")))
    monkeypatch.chdir(run)
    checks = ScoringConfig(check_modules=("my_checks",))
    assert start("overwrite", scoring=checks) == "replace"
    with pytest.raises(ConfigError, match=r"scoring\.check_modules: .* would delete or move"):
        start("resume", scoring=checks)
    for key in ("loss", "advantage"):
        own = AlgorithmConfig.model_validate({key: "my_checks:f"})
        with pytest.raises(ConfigError, match=rf"algorithm\.{key}: .* would delete or move"):
            start("resume", algorithm=own)
    reward = ScoringConfig(group_reward="my_checks:reward")
    with pytest.raises(ConfigError, match=r"scoring\.group_reward: .* would delete or move"):
        start("resume", scoring=reward)


def test_a_run_killed_before_its_first_number_goes_on_in_its_folder(tmp_path: Path) -> None:
    with RunFolder.create(config(tmp_path, resume=True)) as folder:
        (folder.path / "notes.txt").write_text("mine")
    for settings in (config(tmp_path), config(tmp_path, resume=True)):
        assert plan_start(settings, purpose="train") == "new"
        with RunFolder.create(settings) as folder:
            assert (folder.path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("run.before-*"))


def test_results_without_a_checkpoint_are_moved_aside_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        with RunFolder.create(config(tmp_path, resume=True)) as folder:
            folder.log(0, {"reward/mean": number / 10})
            folder.log_rollouts("step_000000", [])
    with RunFolder.create(config(tmp_path, resume=True)) as folder:
        assert (folder.path / "metrics.jsonl").read_text() == ""
        assert not (folder.path / "rollouts").exists()
    for number in (1, 2):
        moved = tmp_path / f"run.before-{number}"
        assert f'"reward/mean": 0.{number}' in (moved / "metrics.jsonl").read_text()
        assert (moved / "rollouts" / "step_000000.jsonl").exists()
        assert str(moved) in caplog.text
    assert "run starts at the beginning" in caplog.text


@pytest.mark.parametrize("what", ["renamed", "gone", "unmounted"])
def test_a_run_whose_checkpoints_are_elsewhere_loses_nothing(tmp_path: Path, what: str) -> None:
    play(config(tmp_path), steps=4, save_at=4)
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    metrics = (run / "metrics.jsonl").read_bytes()
    if what == "renamed":
        (run / "checkpoints" / "step_000004").rename(run / "checkpoints" / "step_000004.bak")
    else:
        (run / "checkpoints").rename(tmp_path / "elsewhere")
    if what == "unmounted":
        (run / "checkpoints").symlink_to(tmp_path / "not there")
        with pytest.raises(ConfigError, match="is a disk not mounted"):
            RunFolder.create(config(tmp_path, resume=True))
    else:
        with RunFolder.create(config(tmp_path, resume=True)):
            pass
        run = tmp_path / "run.before-1"
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert len(list((run / "rollouts").iterdir())) == 4
    assert what != "renamed" or (run / "checkpoints" / "step_000004.bak" / "driver.json").exists()


def test_a_users_folder_is_no_run_whatever_it_is_called(tmp_path: Path) -> None:
    mine = tmp_path / "exp1"
    mine.mkdir()
    texts = {"config.yaml": "# mine", "my_checks.py": "1", "metrics.jsonl": "{}", "run.log": "x",
             "herl_run.json": '{"made_by": "me"}'}  # fmt: skip
    for name, text in texts.items():
        (mine / name).write_text(text)
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match="never deleted"):
                RunFolder.create(config(tmp_path, "exp1", **how))
    assert {file.name: file.read_text() for file in mine.iterdir()} == texts


def test_a_run_of_an_earlier_version_is_resumed_but_never_overwritten(tmp_path: Path) -> None:
    play(config(tmp_path), save_at=2)
    (tmp_path / "run" / "herl_run.json").unlink()
    with pytest.raises(ConfigError, match="never deleted"):
        RunFolder.create(config(tmp_path, overwrite=True))
    with RunFolder.create(config(tmp_path, resume=True)) as folder:
        assert folder.checkpoint is not None and folder.checkpoint.driver.step == 2
        assert not is_run(folder.path)
        folder.take_back()
        assert is_run(folder.path)


def test_what_is_not_herls_is_not_in_the_way_of_what_is(tmp_path: Path) -> None:
    play(config(tmp_path), save_at=2)
    run = tmp_path / "run"
    for name, hows in (("policy/notes.md", ("overwrite", "resume")),
                       ("checkpoints/step_000002/why.txt", ("overwrite",))):  # fmt: skip
        (run / name).write_text("mine")
        for how in hows:
            with pytest.raises(ConfigError, match=f"{name} stands where herl would write anew"):
                RunFolder.create(config(tmp_path, "run", **{how: True}))
        (run / name).unlink()
    for name in ("policy", "rollouts", "tensorboard", "metrics.jsonl", "run.log"):
        (run / name).rename(tmp_path / "elsewhere")
        (run / name).symlink_to(tmp_path / "elsewhere")
        before = contents(tmp_path)
        for how in ("overwrite", "resume"):
            if how == "resume" and name in ("rollouts", "tensorboard"):
                continue  # they may be on another disk
            with pytest.raises(ConfigError, match=rf"{name} \(a link\) stands where herl"):
                RunFolder.create(config(tmp_path, "run", **{how: True}))
            assert contents(tmp_path) == before
        (run / name).unlink()
        (tmp_path / "elsewhere").rename(run / name)
    for name in ("config.yaml.tmp", "summary.json.tmp"):
        (run / name).mkdir()
        with pytest.raises(ConfigError, match=f"{name} stands where herl would write anew"):
            RunFolder.create(config(tmp_path, resume=True))
        (run / name).rmdir()


def test_links_under_herls_names_are_not_written_through(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("mine")
    run = tmp_path / "run"
    for name in ("run.log", "config.yaml.tmp", "herl_run.json.tmp", "summary.json.tmp", "run.lock"):
        with RunFolder.create(config(tmp_path)):
            pass
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(notes)
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=f"{name}"):
                RunFolder.create(config(tmp_path, "run", **how))
        assert notes.read_text() == "mine"
        (run / name).unlink()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "run.lock").write_text("a text of mine")
    with pytest.raises(ConfigError, match="never deleted"):
        RunFolder.create(config(tmp_path, "mine"))
    assert (mine / "run.lock").read_text() == "a text of mine"


@pytest.mark.parametrize("what", ["empty", "empty folders", "earlier version"])
def test_nothing_is_where_a_policy_will_be_exported(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    play(config(tmp_path), steps=3, save_at=2)
    policy = tmp_path / "run" / "policy"
    (policy / "herl_export.json").unlink()
    if what != "earlier version":
        (policy / "config.json").unlink()
    if what == "empty folders":
        (policy / ".ipynb_checkpoints").mkdir()
    if what == "earlier version":
        (tmp_path / "run" / "herl_run.json").unlink()
    with RunFolder.create(config(tmp_path, resume=True)) as folder:
        folder.take_back()
        assert not policy.exists()
    moved = policy.with_name("policy.before-1") / "config.json"
    assert moved.exists() == (what == "earlier version") == ("was exported" in caplog.text)


def test_an_old_checkpoint_goes_without_what_others_put_into_it(tmp_path: Path) -> None:
    with RunFolder.create(config(tmp_path)) as folder:
        save(folder, 1)
        note = folder.path / "checkpoints" / "step_000001" / "note.txt"
        note.write_text("the best one")
        save(folder, 2, keep=1)
        assert [p.name for p in checkpoint_folders(folder.path)] == ["step_000002", "step_000001"]
        assert list(note.parent.iterdir()) == [note]
        save(folder, 1)  # it went back
        assert (note.parent.with_name("step_000001.before-1") / "note.txt").exists()
        assert find_checkpoint(config(tmp_path, resume=True)) is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"step": 0}\nnot json at all\n', r"metrics\.jsonl:2: no line of metrics"),
        (b'{"step": 0}\r\n{"step": 1}\r\n', r"metrics\.jsonl:1: no line of metrics"),
        (b'{"step": 0}\n\xff\xfe"a": 1}\n\n', r"metrics\.jsonl:2: no line of metrics"),
        (b'{"step": 0}\n{"reward": 0.5}\n', r"metrics\.jsonl:2: .*no object with a step"),
        (b'{"step": 0}\n[1, 2, 3, 4, 5]\n', r"metrics\.jsonl:2: .*no object with a step"),
        (b'{"step": 0, "a": "one"}\n', r"metrics\.jsonl:1: .*a is no number"),
        (b'{"step"', "has 7 bytes, but its checkpoint was made at "),
        (None, "has 0 bytes, but its checkpoint was made at "),
    ],
)
def test_a_resume_that_cannot_read_its_metrics_has_removed_nothing(
    tmp_path: Path, text: bytes | None, said: str
) -> None:
    play(config(tmp_path), steps=2, save_at=1)
    run = tmp_path / "run"
    (run / "rollouts" / "mine").mkdir()
    (run / "rollouts" / "step_000009.txt").write_text("mine")
    if text is None:
        (run / "metrics.jsonl").unlink()
    else:
        (run / "metrics.jsonl").write_bytes(text + b"x" * (100 if len(text) > 9 else 0))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=said):
        RunFolder.create(config(tmp_path, resume=True))
    assert contents(tmp_path) == before


def test_taking_back_leaves_what_others_keep_beside_rollouts(tmp_path: Path) -> None:
    play(config(tmp_path), steps=3, save_at=1)
    rollouts = tmp_path / "run" / "rollouts"
    (rollouts / "mine").mkdir()
    (rollouts / "step_best.jsonl").write_text("mine")
    (rollouts / "notes_000009.jsonl").write_text("mine")
    play(config(tmp_path, resume=True), steps=0)
    names = sorted(path.name for path in rollouts.iterdir())
    assert names == ["mine", "notes_000009.jsonl", "step_000000.jsonl", "step_best.jsonl"]


class Killed(BaseException):
    """What no code of the project catches for good."""


def operations(monkeypatch: pytest.MonkeyPatch, kill_at: int) -> list[str]:
    """Count what changes files; the one of number `kill_at` is not done any more, nor any after."""
    done: list[str] = []

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*values: Any, **named: Any) -> Any:
            if len(done) >= kill_at:
                raise Killed
            done.append(f"{name} {values[:1]}")
            return real(*values, **named)

        monkeypatch.setattr(module, name, call)

    for name in ("rename", "replace", "truncate", "unlink", "rmdir", "remove"):
        counted(os, name)
    for name in ("write_text", "write_bytes", "unlink", "rmdir", "mkdir", "symlink_to"):
        counted(Path, name)
    return done


@pytest.mark.parametrize("how", ["new", "resume", "overwrite", "aside"])
def test_a_start_killed_anywhere_goes_on(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job that is queued again does it: with `run.resume`; the same steps in the end."""
    kill_at = 0
    while True:
        root = tmp_path / str(kill_at)
        root.mkdir()
        if how != "new":
            play(config(root), steps=3, save_at=0 if how == "aside" else 2)
            (root / "run" / "notes.txt").write_text("mine")
        if how == "aside":
            (root / "run" / "summary.json").unlink()
        settings = config(root, overwrite=True) if how == "overwrite" else config(root, resume=True)
        with monkeypatch.context() as patch:
            done = operations(patch, kill_at)
            try:
                with RunFolder.create(settings) as folder:
                    folder.take_back()
            except Killed:
                pass
        killed = len(done) == kill_at
        saved = [int(folder.name[5:]) for folder in checkpoint_folders(root / "run")]
        play(config(root, resume=True), steps=5 - max(saved, default=0), save_at=5)
        lines = (root / "run" / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == [0, 1, 2, 3, 4], f"killed before {done[-1:]} and {kill_at} in all"
        assert (root / "run" / "policy" / "config.json").exists()
        if how != "new":
            (notes,) = root.rglob("notes.txt")
            assert notes.read_text() == "mine"
        if not killed:
            break
        kill_at += 1
    assert kill_at > {"new": 5, "resume": 8, "overwrite": 12, "aside": 6}[how]


def test_who_comes_between_the_look_and_the_lock_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = RunLock.take

    def late(folder: Path) -> RunLock:
        monkeypatch.setattr(RunLock, "take", take)
        play(config(tmp_path, resume=folder.exists()), steps=3, save_at=5)  # begins and ends
        return take(folder)

    for _ in range(2):  # a new run; then a resume, with a newer checkpoint
        monkeypatch.setattr(RunLock, "take", late)
        before = tmp_path / "run" / "metrics.jsonl"
        with pytest.raises(ValueError, match=r"exists|another run was writing"):
            RunFolder.create(config(tmp_path, resume=before.exists()))
        steps = [json.loads(line)["step"] for line in before.read_text().splitlines()]
        assert steps == list(range(len(steps)))
        play(config(tmp_path, overwrite=True), steps=2, save_at=2)


def test_a_lock_that_was_moved_away_is_not_the_runs(tmp_path: Path) -> None:
    """Who opened it before the folder was moved aside gets the new folder's, or none."""
    run = tmp_path / "run"
    run.mkdir()
    old = os.open(run / "run.lock", os.O_CREAT | os.O_RDWR)
    run.rename(tmp_path / "run.before-1")
    with RunFolder.create(config(tmp_path)):
        with pytest.raises(ValueError, match="another run is writing"):
            RunLock.take(run)
    os.close(old)
