"""Checkpoints of earlier versions go on: `tests/golden/version_1` is what an earlier commit wrote
for the quickstart, before configurations had a version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.config import history
from herl_megatron.config.history import HISTORY, History, Removed, Renamed
from herl_megatron.config.load import ConfigError, load_config
from herl_megatron.config.schema import Config
from herl_megatron.files.manifest import write_manifest
from herl_megatron.run.checkpoints import (
    DriverState,
    find_checkpoint,
    publish_checkpoint,
    start_checkpoint,
)

OLD = Path(__file__).parents[2] / "golden/version_1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with one checkpoint, as the earlier commit left it."""
    folder = tmp_path / "run"
    step = folder / "checkpoints" / "step_000020"
    (step / "trainer").mkdir(parents=True)
    (step / "trainer" / ".metadata").write_bytes(b"names")
    shutil.copy(OLD / "driver.json", step)
    shutil.copy(OLD / "train.yaml", folder / "config.yaml")
    (folder / "herl_run.json").write_text('{"made_by": "herl_megatron", "command": "train"}')
    write_manifest(step)
    return folder


def resumed(run: Path, *overrides: str) -> Config:
    place = (f"run.dir={run.parent}", "run.name=run", "run.resume=true")
    return load_config(run / "config.yaml", [*place, *overrides])


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    step = run / "checkpoints" / "step_000020"
    driver = json.loads((step / "driver.json").read_text())
    change(driver)
    (step / "driver.json").write_text(json.dumps(driver))
    (step / "manifest.json").unlink()
    write_manifest(step)
    return step


def test_it_goes_on_and_what_decides_numbers_is_compared(run: Path) -> None:
    found = find_checkpoint(resumed(run))
    assert found is not None and found.driver.step == 20
    assert found.driver.schema_version == HISTORY.version
    assert "max_tokens" not in found.driver.config["sft"]  # sft.data is empty
    with pytest.raises(ConfigError, match=r"rollout\.group_size is 9 but .* was made with 8"):
        find_checkpoint(resumed(run, "rollout.group_size=9"))
    assert find_checkpoint(resumed(run, "rollout.max_num_seqs=7")) is not None  # speed alone


MADE_UP = History(
    version=3,
    renamed=(Renamed(2, "rollout.samples", "rollout.group_size"),
             Renamed(3, "algorithm.kl_percent", "algorithm.kl_coef", lambda value: value / 100)),
    removed=(Removed(2, "train.verbose", "take it out"),),
)  # fmt: skip


def test_keys_under_their_old_names_are_compared_with_those_of_today(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old_names(driver: dict[str, Any]) -> None:
        config = driver["config"]
        config["rollout"]["samples"] = config["rollout"].pop("group_size")
        del config["algorithm"]["kl_coef"]
        config["algorithm"]["kl_percent"] = 5
        config["train"]["verbose"] = True

    edit(run, old_names)
    with pytest.raises(ConfigError, match=r"kl_coef is 0\.05 but .* was made with 0\.0"):
        find_checkpoint(resumed(run, "algorithm.kl_coef=0.05"))  # nobody knows the old name
    monkeypatch.setattr(history, "HISTORY", MADE_UP)
    found = find_checkpoint(resumed(run, "algorithm.kl_coef=0.05"))
    assert found is not None and found.driver.schema_version == 3
    assert found.driver.config["rollout"]["group_size"] == 8
    assert "verbose" not in found.driver.config["train"]
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(resumed(run, "rollout.group_size=9", "algorithm.kl_coef=0.06"))
    assert "rollout.group_size is 9" in str(caught.value) and "with 8" in str(caught.value)
    assert "algorithm.kl_coef is 0.06" in str(caught.value) and "with 0.05" in str(caught.value)


def test_one_of_a_later_version_is_refused_before_its_keys_are_read(run: Path) -> None:
    later = HISTORY.version + 1
    step = edit(run, lambda driver: driver.update(schema_version=later, config={"x": 1}))
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(resumed(run))
    assert f"{step}: version is {later}, but this herl_megatron knows" in str(caught.value)


def test_a_checkpoint_says_its_version(tmp_path: Path) -> None:
    driver = DriverState(1, 0, {}, None, {"model": {"path": "toy"}})
    folder = publish_checkpoint(start_checkpoint(tmp_path, 1), driver, keep=1, written={})
    assert json.loads((folder / "driver.json").read_text())["schema_version"] == HISTORY.version
