"""A configuration's version: what old and new files are told, and what runs of earlier versions
are to the commands of today."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from herl_megatron.config import history
from herl_megatron.config.explain import explain, find
from herl_megatron.config.history import HISTORY, History, Removed, Renamed
from herl_megatron.config.load import (
    ConfigError,
    load_config,
    load_saved,
    save_resolved,
)
from herl_megatron.config.upgrade import upgraded
from herl_megatron.report.runs import read_run

OLD = Path(__file__).parents[2] / "golden/version_1"
MADE_UP = History(
    version=3,
    renamed=(
        Renamed(2, "train.rounds", "train.passes"),
        Renamed(3, "train.passes", "train.steps"),
        Renamed(3, "judge.voices", "judge.samples", lambda value: 2 * value + 1),
    ),
    removed=(Removed(3, "train.verbose", "take it out"),),
)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY", MADE_UP)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_renamed_key_is_refused_by_its_new_name(tmp_path: Path, made_up: None) -> None:
    path = write(tmp_path / "my run.yaml",
                 "model: {path: toy}\ntrain: {rounds: 3, verbose: true}\n")  # fmt: skip
    said = refused(path)
    assert f"2 problems in {path}" in said
    assert "train.rounds is called train.steps since version 2 of the keys" in said
    assert f"`herl config migrate '{path}'`" in said
    assert "train.verbose was removed in version 3 of the keys: take it out" in said
    child = write(tmp_path / "child.yaml", "extends: [my run.yaml]\nrun: {seed: 1}\n")
    assert refused(child) == said  # names the file that has it


def test_a_renamed_key_in_an_override(tmp_path: Path, made_up: None) -> None:
    path = write(tmp_path / "run.yaml", "model: {path: toy}\n")
    said = refused(path, "train.passes=3")
    assert "train.passes is called train.steps since version 3" in said and "migrate" not in said
    with pytest.raises(ConfigError, match=r"judge\.voices is called judge\.samples"):
        load_config([], ["judge.voices=1"])
    with pytest.raises(ValueError, match=r"train\.rounds is called train\.steps"):
        explain("train.rounds")


def test_versions_that_a_file_may_have(tmp_path: Path) -> None:
    text = "model: {path: toy}\n"
    plain = load_config(write(tmp_path / "a.yaml", text))
    for version in (1, HISTORY.version):
        path = write(tmp_path / "b.yaml", f"version: {version}\n{text}")
        assert load_config(path) == plain
        assert load_config([path, tmp_path / "a.yaml"], ["run.name=herl"]) == plain
    newer = refused(write(tmp_path / "c.yaml", f"version: {HISTORY.version + 1}\n{text}"))
    assert f"version is {HISTORY.version + 1}" in newer and "or a newer one" in newer
    for odd in ("0", "-1", "two", "1.5", "true", "[1]", "'1'"):
        said = refused(write(tmp_path / "d.yaml", f"version: {odd}\n{text}"))
        assert f"version must be a whole number from 1 to {HISTORY.version}" in said
    assert "version cannot be overridden" in refused(tmp_path / "a.yaml", "version=1")
    assert "extends is for files" in refused(tmp_path / "a.yaml", "extends=[b.yaml]")
    assert "version of the keys" in explain("version") and "list of files" in explain("extends")


def test_what_a_file_without_a_version_means(tmp_path: Path) -> None:
    """By hand: the keys of today. With the first version said: the longest row of that time."""
    text = "model: {path: toy}\nsft: {data: rows.jsonl}\n"
    assert load_config(write(tmp_path / "a.yaml", text)).sft.max_tokens == 4096
    said = refused(write(tmp_path / "b.yaml", f"version: 1\n{text}"))
    assert "sft.max_tokens is not given" in said and "dpo" not in said
    assert "data.max_experience_tokens + rollout.max_response_tokens" in said
    path = write(tmp_path / "c.yaml", f"version: 1\n{text[:-2]}, max_tokens: 9}}\n")
    assert load_config(path).sft.max_tokens == 9


def test_what_is_saved_says_its_version(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "a.yaml", "model: {path: toy}\nrun: {seed: 3}\n"))
    save_resolved(config, tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text().startswith(f"version: {HISTORY.version}\nrun:\n")
    assert load_config(tmp_path / "config.yaml") == config == load_saved(tmp_path / "config.yaml")


def as_run(folder: Path, name: str, command: str) -> Path:
    """A run's folder with a `config.yaml` that an earlier commit wrote."""
    folder.mkdir()
    shutil.copy(OLD / name, folder / "config.yaml")
    (folder / "herl_run.json").write_text(json.dumps({"made_by": "herl_megatron",
                                                      "command": command}))  # fmt: skip
    return folder


def test_a_run_of_the_first_version_loads(tmp_path: Path) -> None:
    run = as_run(tmp_path / "run", "train.yaml", "train")
    config = load_config(run / "config.yaml", ["run.resume=true"])
    assert (config.train.steps, config.rollout.timeout_s, config.run.resume) == (40, 300.0, True)
    assert (config.parity.fp32_max, config.scoring.check_memory_bytes) == (0.001, 4 << 30)
    assert find(str(run)) == load_saved(run / "config.yaml")
    sft = as_run(tmp_path / "sft", "sft.yaml", "sft")
    assert load_saved(sft / "config.yaml").sft.max_tokens == 192 + 48  # as that run meant it
    assert find(str(sft)).sft.max_tokens == 240


def test_saved_configurations_get_the_names_of_today(tmp_path: Path, made_up: None) -> None:
    run = as_run(tmp_path / "run", "train.yaml", "train")
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["train"]["rounds"] = values["train"].pop("steps") + 2
    values["train"]["verbose"] = True
    values["judge"]["voices"] = 3
    del values["judge"]["samples"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert "`herl config migrate" in refused(run / "config.yaml")
    saved = load_saved(run / "config.yaml")
    assert (saved.train.steps, saved.judge.samples) == (42, 7)
    (run / "metrics.jsonl").write_text('{"step": 0, "reward/mean": 0.5}\n')
    settings = read_run(run).settings
    assert (settings["train.steps"], settings["judge.samples"]) == (42, 7)
    assert not {"version", "train.rounds", "train.verbose"} & settings.keys()
    values["train"]["steps"] = 1
    with pytest.raises(ValueError, match="both train.passes and train.steps are given"):
        upgraded(values, 1)


def test_a_name_that_means_something_else_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 called `train.steps` what is `sft.steps`, and gave the name to another key."""
    table = History(version=2, renamed=(Renamed(2, "train.steps", "sft.steps"),))
    monkeypatch.setattr(history, "HISTORY", table)
    values = {"train": {"steps": 3}}
    assert upgraded(values, 1) == {"sft": {"steps": 3}}
    assert upgraded(values, 2) == values == upgraded(values, None)
