"""Overrides of whole sections, `judge={model: x}`, as overrides of their keys, `judge.model=x`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from herl_megatron.config.decides import keys
from herl_megatron.config.load import read_overrides


def key_by_key(overrides: Sequence[str]) -> tuple[str, ...]:
    """The same overrides, in their order, each of one key: for who asks which keys are given. What
    is of one key already, a mapping that is a key's value too, stays as it is written.

    Raises:
        ConfigError: one cannot be read.
    """
    sections = {key.path.rpartition(".")[0] for key in keys()}
    return tuple(one for text in overrides for one in _of_keys(text, sections))


def _of_keys(text: str, sections: set[str]) -> Iterator[str]:
    values = read_overrides([text])
    path = text.partition("=")[0]
    if path not in sections:
        yield text
        return
    plain: Any = OmegaConf.to_container(values)
    for part in path.split("."):
        plain = plain[part]
    yield from _leaves(path, plain, sections)


def _leaves(path: str, value: Any, sections: set[str]) -> Iterator[str]:
    if path in sections and isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}", inner, sections)
        return
    # NaN stays one, for the schema to refuse.
    yield f"{path}={json.dumps(value, ensure_ascii=False, allow_nan=True, default=str)}"
