"""Checkpoints on disk: published whole, damage found, the right one chosen, the run taken back."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from herl_megatron.config.schema import (
    Config,
    DataConfig,
    EvalConfig,
    JudgeConfig,
    MegatronConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScoringConfig,
    TrainConfig,
)
from herl_megatron.files.manifest import HashedFile, damage, describe_files, write_manifest
from herl_megatron.observability.versions import package_versions
from herl_megatron.run.checkpoints import (
    DriverState,
    find_checkpoint,
    publish_checkpoint,
    start_checkpoint,
)
from herl_megatron.run.folder import RunFolder


def config(
    folder: Path, *, resume: bool = True, overwrite: bool = False, **sections: Any
) -> Config:
    return Config(
        run=RunConfig(dir=str(folder), name="run", resume=resume, overwrite=overwrite),
        model=ModelConfig(path="toy"),
        **sections,
    )


def save(
    run: Path,
    step: int,
    *,
    keep: int = 2,
    metrics_bytes: int = 0,
    written: dict[str, Any] | None = None,
    **sections: Any,
) -> Path:
    """A checkpoint whose trainer part is two small files."""
    staging = start_checkpoint(run, step)
    (staging / "trainer" / "a.distcp").write_bytes(b"weights of step %d" % step)
    (staging / "trainer" / ".metadata").write_bytes(b"names")
    driver = DriverState(
        step=step,
        metrics_bytes=metrics_bytes,
        prompts={"position": step},
        before={"reward": 0.25, "all_satisfied": 0.0},
        config=config(run.parent, **sections).model_dump(mode="json"),
    )
    return publish_checkpoint(staging, driver, keep=keep, written=written or {})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of steps 10 and 20."""
    folder = tmp_path / "run"
    with RunFolder.create(config(tmp_path, resume=False)):
        save(folder, 10)
        save(folder, 20)
    return folder


def replaced(path: Path, make: Callable[[Path], None]) -> None:
    """Something else under the name of a file or folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def rewritten(folder: Path, text: str | None, **changes: Any) -> None:
    """The driver's part, in a manifest that fits."""
    file = folder / "driver.json"
    file.write_text(text if text else json.dumps(json.loads(file.read_text()) | changes))
    write_manifest(folder)


def test_newest_is_found_with_what_the_driver_saved(run: Path, tmp_path: Path) -> None:
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.folder == run / "checkpoints" / "step_000020"
    assert (found.driver.step, found.driver.prompts) == (20, {"position": 20})
    assert found.driver.before == {"reward": 0.25, "all_satisfied": 0.0}
    assert (run / "checkpoints" / "latest").resolve() == found.folder.resolve()


def test_only_the_newest_stay_and_a_half_written_one_is_no_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    start_checkpoint(run, 30)  # killed here
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.driver.step == 20
    save(run, 40)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["latest", "step_000020", "step_000040"]
    assert (run / "checkpoints" / "latest").resolve().name == "step_000040"


def test_a_save_behind_a_damaged_one_stays_and_copies_set_aside_are_left_alone(
    run: Path, tmp_path: Path
) -> None:
    folder = run / "checkpoints"
    (folder / "step_000020" / "driver.json").unlink()
    shutil.copytree(folder / "step_000010", folder / "step_000010_good")
    save(run, 15, keep=1)  # resumed from step 10
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["latest", "step_000010_good", "step_000015", "step_000020"]
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.driver.step == 15


def test_nothing_older_goes_before_the_new_one_is_on_disk(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut only what was flushed is there: files, their folders, and the names."""
    flushed: set[int] = set()
    fsync, rmtree = os.fsync, shutil.rmtree

    def noted_fsync(opened: int) -> None:
        flushed.add(os.fstat(opened).st_ino)
        fsync(opened)

    def checked_rmtree(folder: Path) -> None:
        new = run / "checkpoints" / "step_000030"
        assert {path.stat().st_ino for path in (new.parent, new, *new.rglob("*"))} <= flushed
        rmtree(folder)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(shutil, "rmtree", checked_rmtree)
    save(run, 30)
    assert not (run / "checkpoints" / "step_000010").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "manifest.json").unlink(), "no manifest.json"),
        (lambda c: (c / "manifest.json").write_text('{"fi'), "manifest.json cannot be read"),
        (lambda c: (c / "trainer" / ".metadata").unlink(), "trainer/.metadata is missing"),
        (
            lambda c: (c / "trainer" / "a.distcp").write_bytes(b"weights"),
            "trainer/a.distcp has 7 bytes instead of 18",
        ),
        (
            lambda c: (c / "trainer" / "a.distcp").write_bytes(b"weights of step 21"),
            "trainer/a.distcp has other content",
        ),
        (lambda c: (c / "driver.json").write_text("{}"), "driver.json has 2 bytes instead of"),
        (lambda c: (c / "manifest.json").write_text("null"), "it lists no files"),
        (lambda c: (c / "manifest.json").write_text("[]"), "it lists no files"),
        (
            lambda c: (c / "manifest.json").write_text('{"files": ["driver.json"]}'),
            "lists no files",
        ),
        (lambda c: (c / "manifest.json").write_text('{"files": {}}'), "it lists no files"),
        (
            lambda c: (c / "manifest.json").write_text('{"files": {"driver.json": 7}}'),
            "manifest.json has no hash of driver.json",
        ),
        (lambda c: (c / "manifest.json").write_bytes(b"\xff"), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_text("[" * 9999), "manifest.json cannot be read"),
        (lambda c: replaced(c / "manifest.json", Path.mkdir), "manifest.json cannot be read"),
        (lambda c: replaced(c / "trainer" / ".metadata", Path.mkdir), ".metadata is missing"),
        (lambda c: replaced(c, Path.touch), "it is no folder"),
        (lambda c: rewritten(c, "null"), "holds None, not an object"),
        (lambda c: rewritten(c, "{"), "driver.json is not valid JSON"),
        (lambda c: rewritten(c, None, prompts=[]), "driver.json says [] for prompts"),
        (lambda c: rewritten(c, None, step="x"), "driver.json says 'x' for step"),
        (lambda c: rewritten(c, None, config={"run": 3}), "driver.json holds no configuration"),
    ],
)
def test_damage_is_named_and_the_one_before_used(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, message: str
) -> None:
    newest, older = (run / "checkpoints" / f"step_0000{step}" for step in (20, 10))
    damage(newest)
    logger = logging.getLogger("herl_megatron")
    logger.addHandler(caplog.handler)  # it does not propagate once `setup_logging` has run
    found = find_checkpoint(config(tmp_path))
    logger.removeHandler(caplog.handler)
    assert found is not None and found.folder == older
    assert f"{newest} is damaged (" in caplog.text and message in caplog.text
    assert f"using {older} instead" in caplog.text
    shutil.rmtree(older)
    with pytest.raises(ValueError, match="is damaged.*overwrite=true"):
        find_checkpoint(config(tmp_path))


def test_hashes_of_the_ranks_are_taken_and_still_checked(run: Path, tmp_path: Path) -> None:
    """What the writer hashed is what counts: a file that the disk changed on the way is damaged.
    A file that does not arrive in its size is no checkpoint at all."""
    good = {"bytes": 18, "xxh128": xxhash.xxh3_128_hexdigest(b"weights of step 30")}
    newest = save(run, 30, written={"trainer/a.distcp": good})
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.folder == newest
    other = {"bytes": 18, "xxh128": xxhash.xxh3_128_hexdigest(b"weights of step 99")}
    save(run, 31, written={"trainer/a.distcp": other})
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.folder == newest
    for name, said in (("a", "has 18"), ("b", "is not there")):
        with pytest.raises(OSError, match=f"{name}.distcp was written with 19 .* {said}; .*shared"):
            save(run, 32, written={f"trainer/{name}.distcp": {**good, "bytes": 19}})
    assert not (run / "checkpoints" / "step_000032").exists()


def test_a_manifest_of_sha256_is_still_read(run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoints" / "step_000020"
    manifest = json.loads((newest / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        del facts["xxh128"]
        facts["sha256"] = hashlib.sha256((newest / name).read_bytes()).hexdigest()
    (newest / "manifest.json").write_text(json.dumps(manifest))
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.folder == newest
    (newest / "trainer" / ".metadata").write_bytes(b"Names")
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.driver.step == 10
    for facts in manifest["files"].values():
        facts["md5"] = facts.pop("sha256")
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert damage(newest) == "manifest.json has no hash of driver.json that this version knows"


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    with HashedFile(tmp_path / "file") as file:
        for start in (0, 3, 2_000_000):
            end = {0: 3, 3: 2_000_000}.get(start, len(content))
            assert file.write(memoryview(content)[start:end]) == end - start
            assert file.tell() == end
        file.sync()
    assert (tmp_path / "file").read_bytes() == content
    wanted = {"bytes": len(content), "xxh128": xxhash.xxh3_128_hexdigest(content)}
    assert file.facts() == wanted == describe_files(tmp_path)["file"]


def test_a_checkpoint_of_another_version_is_named(run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoints" / "step_000020"
    values = json.loads((newest / "driver.json").read_text())
    values["cursor"] = values.pop("prompts")
    (newest / "driver.json").write_text(json.dumps(values))
    write_manifest(newest)
    with pytest.raises(ValueError, match="another version.*differs in cursor, prompts"):
        find_checkpoint(config(tmp_path))


def test_what_decides_the_numbers_must_be_as_it_was(run: Path, tmp_path: Path) -> None:
    layout = MegatronConfig(tensor_parallel=4, timeout_s=5)
    assert find_checkpoint(config(tmp_path, megatron=layout)) is not None
    with pytest.raises(ValueError, match="megatron.precision is 'fp32' but .* with 'bf16'"):
        find_checkpoint(config(tmp_path, megatron=MegatronConfig(precision="fp32")))
    with pytest.raises(ValueError, match=r"optimizer.lr is 0.5 but .* with 1e-06"):
        find_checkpoint(config(tmp_path, optimizer=OptimizerConfig(lr=0.5)))
    with pytest.raises(ValueError, match="scoring.answer_after is '</think>' but .* with ''"):
        find_checkpoint(config(tmp_path, scoring=ScoringConfig(answer_after="</think>")))
    with pytest.raises(ValueError, match="train.steps is 19 but .* has done 20"):
        find_checkpoint(config(tmp_path, train=TrainConfig(steps=19)))
    assert find_checkpoint(config(tmp_path, train=TrainConfig(steps=200))) is not None
    decaying: dict[str, Any] = {"optimizer": OptimizerConfig(schedule="linear")}
    save(run, 30, **decaying)
    assert find_checkpoint(config(tmp_path, **decaying)) is not None
    with pytest.raises(ValueError, match="train.steps is 200 but .* with 100"):
        find_checkpoint(config(tmp_path, train=TrainConfig(steps=200), **decaying))


PRINTS = {"data.train": "2 rows ab", "data.eval": "1 rows cd", "tokenizer of model.path": "ef",
          "source of scoring.check_modules mine": "12", "judge.prompt": "34"}  # fmt: skip


def save_with(run: Path, step: int, **facts: Any) -> None:
    staging = start_checkpoint(run, step)
    settings = config(run.parent).model_dump(mode="json")
    driver = DriverState(step, 0, {}, None, settings, **facts)
    publish_checkpoint(staging, driver, keep=9, written={})


@pytest.mark.parametrize("name", [name for name in PRINTS if name != "data.eval"])
def test_what_the_run_reads_must_be_as_it_was(
    run: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_with(run, 30, fingerprints=PRINTS)
    assert find_checkpoint(config(tmp_path), dict(PRINTS)) is not None
    said = f"{name} is not what .*step_000030 was made with \\(other now, {PRINTS[name]} then"
    with pytest.raises(ValueError, match=said):
        find_checkpoint(config(tmp_path), PRINTS | {name: "other"})
    assert "no fingerprint" not in caplog.text
    # What a later version knows and this checkpoint does not is said.
    assert find_checkpoint(config(tmp_path), PRINTS | {"new one": "56"}) is not None
    assert "kept no fingerprint of new one" in caplog.text


def test_without_fingerprints_paths_are_compared(run: Path, tmp_path: Path) -> None:
    """All that is known of a checkpoint of an earlier version."""
    rows: dict[str, Any] = {
        "data": DataConfig(train="a.jsonl", eval="b.jsonl"),
        "judge": JudgeConfig(prompt="p"),
    }
    save(run, 30, **rows)
    found = find_checkpoint(config(tmp_path, **rows))
    assert found is not None and found.other_evaluation == ()
    other = rows | {"data": DataConfig(train="moved.jsonl", eval="other.jsonl")}
    found = find_checkpoint(config(tmp_path, **other))
    assert found is not None and found.other_evaluation == ("data.eval",)
    with pytest.raises(ValueError, match="judge.prompt is 'q' but .* with 'p'"):
        find_checkpoint(config(tmp_path, **(rows | {"judge": JudgeConfig(prompt="q")})))


def test_a_judges_prompt_where_there_was_none_is_another_judge(run: Path, tmp_path: Path) -> None:
    save_with(run, 30, fingerprints=PRINTS)
    with pytest.raises(ValueError, match="judge.prompt is 'q' but .* with ''"):
        find_checkpoint(config(tmp_path, judge=JudgeConfig(prompt="q")), dict(PRINTS))


def test_who_judges_and_how_must_be_as_it_was(run: Path, tmp_path: Path) -> None:
    judged: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": "two"}, "judge.model is 'two' but .* with ''"),
        ({"samples": 3}, "judge.samples is 3 but .* with 1"),
        ({"temperature": None}, "judge.temperature is None but .* with 0.0"),
        ({"evidence": False}, "judge.evidence is False"),
        ({"canary": False}, "judge.canary is False"),
        ({"max_tokens": 7}, "judge.max_tokens is 7"),
        ({"structured": "none"}, "judge.structured is 'none'"),
        ({"extra_body": {"top_k": 1}}, "judge.extra_body is {'top_k': 1}"),
    )
    for change, said in judged:
        with pytest.raises(ValueError, match=said):
            find_checkpoint(config(tmp_path, judge=JudgeConfig(**change)))
    scored: tuple[tuple[dict[str, Any], str], ...] = (
        ({"check_modules": ("mine",)}, "scoring.check_modules is "),
        ({"check_timeout_s": 1.0}, "scoring.check_timeout_s is 1.0"),
    )
    for change, said in scored:
        with pytest.raises(ValueError, match=said):
            find_checkpoint(config(tmp_path, scoring=ScoringConfig(**change)))
    moved = JudgeConfig(base_url="http://b/v1", concurrency=3, price_in=2.0, cache="", retries=0)
    assert find_checkpoint(config(tmp_path, judge=moved)) is not None


def test_another_evaluation_is_no_hindrance_and_known(run: Path, tmp_path: Path) -> None:
    found = find_checkpoint(config(tmp_path))
    assert found is not None and found.other_evaluation == ()
    found = find_checkpoint(config(tmp_path, eval=EvalConfig(temperature=0.1, seed=3)))
    assert found is not None and found.other_evaluation == ("eval.temperature", "eval.seed")
    save_with(run, 30, fingerprints=PRINTS)
    found = find_checkpoint(config(tmp_path), PRINTS | {"data.eval": "2 rows ef"})
    assert found is not None and found.other_evaluation == ("data.eval",)


def test_a_checkpoint_without_fingerprints_is_accepted_and_said(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run / "checkpoints" / "step_000020"
    values = json.loads((newest / "driver.json").read_text())
    del values["fingerprints"], values["versions"]  # as an earlier version wrote it
    (newest / "driver.json").write_text(json.dumps(values))
    write_manifest(newest)
    found = find_checkpoint(config(tmp_path), dict(PRINTS))
    assert found is not None and found.driver.step == 20
    assert "kept no fingerprints" in caplog.text


def test_other_packages_are_said(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = dict(package_versions())
    save_with(run, 30, versions=now)
    assert find_checkpoint(config(tmp_path)) is not None
    assert "other packages" not in caplog.text
    save_with(run, 40, versions=now | {"torch": "1.0", "gone": "2"})
    assert find_checkpoint(config(tmp_path)) is not None
    assert f"gone is gone (was 2), torch {now['torch']} (was 1.0)" in caplog.text


def test_one_rule_for_an_existing_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run.resume=true to continue it, or set run.overwrite"):
        RunFolder.create(config(tmp_path, resume=False))
    with pytest.raises(ValueError, match="both true"):
        RunFolder.create(config(tmp_path, overwrite=True))
    shutil.rmtree(run / "checkpoints")
    with RunFolder.create(config(tmp_path)) as folder:  # killed before the first: starts again
        assert folder.checkpoint is None
    (run / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="finished run without a checkpoint"):
        RunFolder.create(config(tmp_path))
    shutil.rmtree(run)
    assert find_checkpoint(config(tmp_path)) is None


def test_folder_is_taken_back_to_the_checkpoint(tmp_path: Path) -> None:
    with RunFolder.create(config(tmp_path, resume=False)) as folder:
        folder.log(0, {"eval/reward": 0.5})
        for step in range(5):
            folder.log(step, {"reward/mean": step / 10})
            folder.log_rollouts(f"step_{step:06d}", [])
            if step == 2:
                folder.log(3, {"eval/reward": 0.6})
                folder.log_rollouts("eval_000003", [])
                save(folder.path, 3, metrics_bytes=folder.sync_metrics())
        folder.log_rollouts("eval_000005", [])
        folder.log_rollouts("unfinished", [])
        folder.policy.mkdir()
        (folder.policy / "herl_export.json").write_text('{"files": ["config.json"]}')
        (folder.policy / "config.json").write_text("{}")
        whole = (folder.path / "metrics.jsonl").read_text()
    with RunFolder.create(config(tmp_path)) as again:
        assert (again.path / "metrics.jsonl").read_text() == whole  # nothing goes before it stands
        assert (again.policy / "config.json").exists()
        again.take_back()
        text = (again.path / "metrics.jsonl").read_text()
        assert whole.startswith(text)
        steps = [json.loads(line)["step"] for line in text.splitlines()]
        assert steps == [0, 0, 1, 2, 3]
        kept = sorted(path.stem for path in (again.path / "rollouts").iterdir())
        assert kept == ["eval_000003", "step_000000", "step_000001", "step_000002"]
        assert not again.policy.exists()
        for step in (3, 4):
            again.log(step, {"reward/mean": step / 10})
        assert [item.step for item in again._metrics.history] == [0, 0, 1, 2, 3, 3, 4]
    assert (again.path / "metrics.jsonl").read_text() == whole
    (again.path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has 0 bytes"):
        RunFolder.create(config(tmp_path))


def test_a_stopped_run_says_how_to_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for saved in (False, True):
        with pytest.raises(RuntimeError), RunFolder.create(config(tmp_path)) as folder:
            if saved:
                save(folder.path, 1)
            raise RuntimeError("trainer rank 1 died")
        command = f"herl train {folder.path}/config.yaml run.resume=true"
        assert (command in (folder.path / "run.log").read_text()) == saved
