"""Weights out of a Megatron checkpoint, without Megatron and without its ranks.

    folder = MegatronFolder(path, architecture)      # converted weights, or a run's checkpoint
    folder.check()
    folder.tensors(parameter)                        # whole HF tensors
    folder.shard(parameter, rank=0, tp=2)            # what one rank of any layout holds

Files are mapped. What lies in one block of the checkpoint is a view of it; what another layout cut
in pieces is put together, so the memory needed is that of the one tensor that is asked for.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader, Metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from herl_megatron.megatron.convert.layout import Place, blocks, place, whole_shape
from herl_megatron.megatron.scratch import Scratch
from herl_megatron.megatron.torch_records import MappedFiles
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.parameters import Layout, Parameter, parameters, unfuse

_MAIN_WEIGHTS = ("optimizer.state.param.", "optimizer.state.fp32_param.")
"""Prefix of the fp32 main weights, as the distributed and the plain optimizer call them."""
_PICKLE_ERRORS = (
    OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError,
    ValueError,
)  # fmt: skip
"""What unpickling damaged bytes raises."""


@dataclass(frozen=True)
class _Chunk:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    """First byte of its record in the file."""
    num_bytes: int


class MegatronFolder:
    """The weights of a `torch_dist` checkpoint, which any layout may have written."""

    def __init__(
        self,
        path: str | Path,
        architecture: Architecture,
        *,
        main_weights: bool = False,
        scratch: Scratch | None = None,
    ) -> None:
        """Read the index; no tensor yet.

        path: a folder that `convert_hf_to_megatron` wrote, `step_N` of a run, or its `trainer/`.
        main_weights: take the optimizer's fp32 weights instead of those that the model computes in.
        scratch: for what is put together, so that a thread's last tensor ends with its next one;
            none takes fresh memory.

        Raises:
            ValueError: no such checkpoint there, its index cannot be read, or there are no fp32
                main weights.
        """
        self.path = weights_folder(path)
        self._architecture = architecture
        self._metadata = _read_metadata(self.path)
        self._prefix = self._main_prefix() if main_weights else ""
        self._files = MappedFiles()
        self._scratch = scratch
        # Looked up once per tensor and, for records, once per rank that shares a chunk.
        self._chunks, self._mapped = cache(self._find_chunks), cache(self._map)

    @property
    def has_main_weights(self) -> bool:
        """Whether an optimizer's fp32 weights are there."""
        key = place(next(parameters(self._architecture)), self._architecture, tp=1).key
        return any(prefix + key in self._stored for prefix in _MAIN_WEIGHTS)

    def check(self) -> None:
        """Compare names and shapes with the architecture and look whether every file is there.

        Raises:
            ValueError: a tensor or a file is missing, or a shape is another one.
        """
        for parameter in parameters(self._architecture):
            at = place(parameter, self._architecture, tp=1)
            stored = tuple(self._stored[self._key(at)].size)
            is_vocab = parameter.layout is Layout.VOCAB  # padded for the layout that wrote it
            wanted = at.global_shape
            fits = stored[1:] == wanted[1:] and (
                stored[0] >= self._architecture.vocab_size if is_vocab else stored == wanted
            )
            if not fits:
                raise ValueError(
                    f"{self.path}: {at.key} has shape {stored}, but config.json asks for {wanted};"
                    " it is of another model"
                )
        for file in {item.relative_path for item in self._metadata.storage_data.values()}:
            if not (self.path / file).is_file():
                raise ValueError(f"{self.path}: {file} is missing; copy the folder again")

    def dtype(self, parameter: Parameter) -> torch.dtype:
        """The dtype in which the parameter is stored."""
        at = place(parameter, self._architecture, tp=1)
        dtype: torch.dtype = self._stored[self._key(at)].properties.dtype
        return dtype

    def tensors(self, parameter: Parameter) -> list[torch.Tensor]:
        """The parameter's whole HF tensors."""
        if parameter.layout is Layout.QKV:
            shape = whole_shape(parameter, self._architecture, tp=1)
            fused = self._region(parameter, tuple(0 for _ in shape), shape)
            return unfuse(parameter, fused[None], self._architecture)
        return [
            self.rows(parameter, index, 0, shape[0])
            for index, shape in enumerate(parameter.hf_shapes)
        ]

    def rows(self, parameter: Parameter, index: int, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of the parameter's HF tensor `index`."""
        if parameter.layout is Layout.QKV:
            return self.tensors(parameter)[index][start:stop]
        shape = parameter.hf_shapes[index]
        first = sum(shape[0] for shape in parameter.hf_shapes[:index]) + start
        offsets = (first, *(0 for _ in shape[1:]))
        return self._region(parameter, offsets, (stop - start, *shape[1:]))

    def shard(self, parameter: Parameter, *, rank: int, tp: int) -> torch.Tensor:
        """The part of a parameter that TP rank `rank` of `tp` holds, padding rows zero."""
        parts = []
        for block in blocks(parameter, self._architecture, rank=rank, tp=tp):
            if block.tensor is None and parameter.layout is Layout.VOCAB:
                parts.append(torch.zeros(block.sizes, dtype=self.dtype(parameter)))
            else:
                parts.append(self._region(parameter, block.offsets, block.sizes))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, without padding of the vocabulary."""
        return sum(
            self.dtype(parameter).itemsize * sum(torch.Size(s).numel() for s in parameter.hf_shapes)
            for parameter in parameters(self._architecture)
            if not parameter.tied_copy
        )

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if self._scratch is None:
            return torch.empty(shape, dtype=dtype)
        return self._scratch.empty(shape, dtype)

    @cached_property
    def _stored(self) -> dict[str, TensorStorageMetadata]:
        found = self._metadata.state_dict_metadata.items()
        return {key: item for key, item in found if isinstance(item, TensorStorageMetadata)}

    def _main_prefix(self) -> str:
        if not self.has_main_weights:
            raise ValueError(f"{self.path} holds no fp32 main weights of an optimizer")
        key = place(next(parameters(self._architecture)), self._architecture, tp=1).key
        return next(prefix for prefix in _MAIN_WEIGHTS if prefix + key in self._stored)

    def _key(self, at: Place) -> str:
        key = self._prefix + at.key
        if key not in self._stored:
            raise ValueError(f"{self.path} has no tensor {key}; it is of another model")
        return key

    def _region(
        self, parameter: Parameter, offsets: tuple[int, ...], sizes: tuple[int, ...]
    ) -> torch.Tensor:
        """A box of the parameter: a view if one chunk holds it, else put together."""
        at = place(parameter, self._architecture, tp=1)
        key = self._key(at)
        start, shape = at.lead + offsets, tuple(1 for _ in at.lead) + sizes
        whole: torch.Tensor | None = None
        found = 0
        for chunk in self._chunks(key):
            box = _overlap(chunk, start, shape)
            if box is None:
                continue
            part = self._mapped(key, chunk)[tuple(slice(a - o, b - o) for a, b, o in box[0])]
            if part.numel() == torch.Size(sizes).numel():
                return part.reshape(sizes)
            if whole is None:
                whole = self._empty(shape, part.dtype)
            whole[tuple(slice(a - o, b - o) for a, b, o in box[1])] = part
            found += part.numel()
        if whole is None or found != whole.numel():
            raise ValueError(
                f"{self.path}: {key} is not complete: of {shape} at {start}, {found} values are"
                " there; the checkpoint is damaged"
            )
        return whole.reshape(sizes)

    def _find_chunks(self, key: str) -> tuple[_Chunk, ...]:
        found = []
        for chunk in self._stored[key].chunks:
            item = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
            place = (item.relative_path, item.offset, item.length)
            found.append(_Chunk(tuple(chunk.offsets), tuple(chunk.sizes), *place))
        return tuple(found)

    def _map(self, key: str, chunk: _Chunk) -> torch.Tensor:
        """The chunk as a view of its file."""
        file = self.path / chunk.file
        tensor = self._files.tensor(file, start=chunk.start, num_bytes=chunk.num_bytes)
        if tuple(tensor.shape) != chunk.sizes:
            raise ValueError(
                f"{file}: {key} at byte {chunk.start} has shape {tuple(tensor.shape)}, its index"
                f" says {chunk.sizes}; the checkpoint is damaged"
            )
        return tensor


def weights_folder(path: str | Path) -> Path:
    """`path`, or its `trainer/` where `path` is a run's checkpoint (`step_N`).

    Raises:
        ValueError: neither holds a Megatron checkpoint.
    """
    for folder in (Path(path), Path(path) / "trainer"):
        if (folder / ".metadata").is_file() and (folder / "metadata.json").is_file():
            return folder
    raise ValueError(
        f"{path} is no Megatron checkpoint (no .metadata and metadata.json in it); name a folder"
        " that `herl convert to-megatron` wrote, or step_N of a run's checkpoints"
    )


def _read_metadata(folder: Path) -> Metadata:
    try:
        return FileSystemReader(folder).read_metadata()
    except _PICKLE_ERRORS as error:
        file = folder / ".metadata"
        raise ValueError(f"{file} cannot be read ({error}); the folder is damaged") from error


_Spans = tuple[tuple[int, int, int], ...]


def _overlap(
    chunk: _Chunk, start: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[_Spans, _Spans] | None:
    """(first, last, origin) per axis of what chunk and box share, as the chunk counts and as the
    box counts; None if they share nothing."""
    spans = []
    for a, size_a, b, size_b in zip(chunk.offsets, chunk.sizes, start, shape, strict=True):
        first, last = max(a, b), min(a + size_a, b + size_b)
        if first >= last:
            return None
        spans.append((first, last, a, b))
    return tuple((f, e, a) for f, e, a, _ in spans), tuple((f, e, b) for f, e, _, b in spans)
