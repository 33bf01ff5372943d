"""Tensors of a Hugging Face folder by name, read straight from its mapped safetensors files.

    folder = HFFolder(path)
    folder.check(architecture)                 # names, shapes and dtypes, before any work
    folder.rows(parameter, 0, start, stop)     # a view of the file: no copy

Opening reads headers only. A tensor is a view of the mapped file until somebody copies it, so
reading a model needs no memory of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from herl_megatron.files.strict_json import read_object
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.parameters import Parameter, parameters

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Buffers that old checkpoints carry and that the config determines."""
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ROWS = 4096
"""Of two large tensors compared at a time."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class HFFolder:
    """The weights in `model.safetensors` or in the shards of `model.safetensors.index.json`."""

    def __init__(self, path: str | Path) -> None:
        """Open every file.

        Raises:
            ValueError: no safetensors there; a file that the index names is missing, is truncated
                or is no safetensors file.
        """
        self.path = Path(path)
        self._files = _files_by_name(self.path)
        self._opened = {file: _open(file, self.path) for file in sorted(set(self._files.values()))}
        for name, file in self._files.items():
            if name not in self._opened[file].keys():  # noqa: SIM118 (not a mapping)
                raise ValueError(
                    f"{self.path / INDEX} says that {name} is in {file.name}; it is not"
                )

    def check(self, architecture: Architecture) -> None:
        """Compare names, shapes and dtypes with what the architecture asks for.

        Raises:
            ValueError: tensors missing, unexpected, of another shape, or stored in a dtype that
                is not a plain float (all named).
        """
        wanted = [p for p in parameters(architecture) if not p.tied_copy]
        _check_names(set(self._files), architecture, wanted, self.path)
        self.check_tied_head(tied=architecture.tied)
        for parameter in wanted:
            for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
                self._check_tensor(name, shape)

    def check_tied_head(self, *, tied: bool) -> None:
        """Compare an output layer that is stored although the config ties it to the embedding: some
        programs read it, some drop it, so they must be the same model (vllm-project/vllm#51063).

        Raises:
            ValueError: it differs from the embedding.
        """
        if not tied or not {_HEAD, _EMBEDDING} <= set(self._files):
            return
        head, embedding = self.read(_HEAD), self.read(_EMBEDDING)
        if head.shape != embedding.shape or not all(
            torch.equal(a.float(), b.float())  # of several dtypes, or of one
            for a, b in zip(head.split(_ROWS), embedding.split(_ROWS), strict=True)
        ):
            raise ValueError(
                f"{self.path}: config.json ties the output layer to the embedding"
                f" (tie_word_embeddings), but {_HEAD} is stored and differs from {_EMBEDDING}: set"
                f" tie_word_embeddings to false, or remove {_HEAD}"
            )

    def dtype(self, parameter: Parameter) -> torch.dtype:
        """The one dtype of the parameter's tensors.

        Raises:
            ValueError: they have several, which one Megatron parameter cannot.
        """
        kinds = {name: self._dtype_name(name) for name in parameter.hf_names}
        if len(set(kinds.values())) > 1:
            stored = ", ".join(f"{name} in {kind}" for name, kind in kinds.items())
            raise ValueError(
                f"{self.path}: {stored}, but together they are one Megatron parameter, which has"
                " one dtype; convert to one with --dtype"
            )
        return _DTYPES[kinds[parameter.hf_names[0]]]

    def tensors(self, parameter: Parameter) -> list[torch.Tensor]:
        """The parameter's HF tensors, views of the files."""
        return [self.read(name) for name in parameter.hf_names]

    def rows(self, parameter: Parameter, index: int, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of the parameter's HF tensor `index`, a view of the file."""
        return self.read(parameter.hf_names[index])[start:stop]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, a view of its file."""
        tensor: torch.Tensor = self._opened[self._files[name]].get_tensor(name)
        return tensor

    @property
    def num_bytes(self) -> int:
        """Size of all weight files."""
        return sum(file.stat().st_size for file in self._opened)

    def _dtype_name(self, name: str) -> str:
        kind: str = self._opened[self._files[name]].get_slice(name).get_dtype()
        return kind

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        file = self._files[name]
        stored = tuple(self._opened[file].get_slice(name).get_shape())
        if stored != shape:
            raise ValueError(f"{file}: {name} has shape {stored} but config.json asks for {shape}")
        if (kind := self._dtype_name(name)) not in _DTYPES:
            raise ValueError(
                f"{file}: {name} is stored in {kind}; only {', '.join(_DTYPES)} can be read, so"
                " start from a folder that is not quantised"
            )


def _open(file: Path, folder: Path) -> safe_open:
    if not os.path.isfile(file):
        raise ValueError(
            f"{folder / INDEX} names {file.name}, which is not there; download or copy it again"
        )
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ValueError(
            f"{file} ({size} bytes) is truncated or no safetensors file ({error}); download or"
            " copy it again"
        ) from error


def _files_by_name(folder: Path) -> Mapping[str, Path]:
    """HF tensor name -> the safetensors file that holds it."""
    if (folder / INDEX).is_file():
        try:
            index = read_object(folder / INDEX)["weight_map"]
            return {name: folder / file for name, file in index.items()}
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / INDEX} cannot be read ({error}); download or copy it again"
            ) from error
    single = folder / _SINGLE
    if not single.is_file():
        raise ValueError(
            f"{folder} holds neither {_SINGLE} nor {INDEX}; save the model with safetensors, or"
            " set model.random_init to start from random weights"
        )
    return dict.fromkeys(_open(single, folder).keys(), single)


def _check_names(
    present: set[str], architecture: Architecture, wanted: Sequence[Parameter], folder: Path
) -> None:
    names = {name for parameter in wanted for name in parameter.hf_names}
    missing = sorted(names - present)
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors are missing: {_some(missing)}")
    extra = {name for name in present - names if not _IGNORED.fullmatch(name)}
    if architecture.tied:
        extra.discard(_HEAD)  # some checkpoints repeat the tied embedding
    if extra:
        raise ValueError(
            f"{folder}: {len(extra)} tensors do not belong to a {architecture.family} model of"
            f" this config: {_some(sorted(extra))}"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown}, ..."
