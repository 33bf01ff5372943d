"""The architecture that a Hugging Face folder describes, without Megatron-Core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herl_megatron.config.rules.data import family_problems, read_shape
from herl_megatron.config.shape import size_problems
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.known_families import architecture_from_config


def read_architecture(folder: str) -> Architecture:
    """The architecture described by `folder/config.json`, or by such a file itself.

    Raises:
        ValueError: no readable config there, or one that Megatron-Core cannot express.
    """
    config = read_config(folder)
    try:
        return architecture_from_config(config)
    except ValueError as error:
        raise ValueError(f"{_file(folder)}: {error}") from error


def read_config(folder: str) -> dict[str, Any]:
    """`folder/config.json`, or such a file, as `transformers` reads it: with defaults filled in.

    Raises:
        ValueError: no readable config there, or one that no model can have.
    """
    file = _file(folder)
    try:
        shape = read_shape(file)
    except ValueError as error:
        raise ValueError(f"model.path {folder!r} holds no readable config.json: {error}") from error
    if problems := [*family_problems(shape)] or [*size_problems(shape)]:
        raise ValueError(f"{file}: {'; '.join(problems)}")
    # Imported here: it takes a second, which no rank has to spend that is told its architecture.
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except Exception as error:  # of JSON that means nothing it raises anything
        said = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be used: {said or repr(error)}") from error
    return config


def _file(folder: str) -> Path:
    return Path(folder) if Path(folder).is_file() else Path(folder) / "config.json"
