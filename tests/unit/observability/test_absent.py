"""What stands at a path that somebody gave, and is not what was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from herl_megatron.config.rules.data import file_problems, folder_problems
from herl_megatron.config.schema import Config, DataConfig, ModelConfig
from herl_megatron.files.os_errors import absent
from herl_megatron.files.strict_json import read_object


def test_what_is_at_a_path_is_said_and_nothing_is_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    said = {
        "file": "", ".": "no file but a folder", "none": "no such file",
        "circle": "no such file (Too many levels of symbolic links)",
        "broken": "a link to nothing", "pipe": "no file but a pipe, device or socket",
        "file/x": "no such file (Not a directory)", "x" * 300: "no such file (File name too long)",
        "a\0b": "no such file",
    }  # fmt: skip
    assert {name: absent(tmp_path / name, "file") for name in said} == said
    assert absent(tmp_path, "folder") == ""
    assert absent(tmp_path / "file", "folder") == "no folder but a file"


def test_a_name_that_is_too_long_is_said_with_its_key() -> None:
    long = "x" * 300
    config = Config(model=ModelConfig(path=long), data=DataConfig(train=long))
    assert next(iter(file_problems(config, "train"))).startswith(
        "data.train: no such file (File name too long): 'xxx"
    )
    assert next(iter(folder_problems(config, "train"))).startswith(
        "model.path: no such folder (File name too long): 'xxx"
    )


def test_a_pipe_in_place_of_a_models_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(ValueError, match=r"generation_config\.json cannot be read: no file but"):
        read_object(tmp_path / "generation_config.json")
