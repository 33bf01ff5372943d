"""Write weights as a Megatron checkpoint, one block at a time, without Megatron and its ranks.

Done by torch.distributed.checkpoint's own writer, which asks a planner for one value after the
other: ours reads each value when it is asked for. Every rank of the layout gets files of its own,
so that it finds its weights in whole blocks; with several files per rank, threads can share the
work. Megatron's own loader reads the result at any layout.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch.distributed.checkpoint import (
    DefaultSavePlanner,
    FileSystemWriter,
    Metadata,
    SavePlan,
)
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from herl_megatron.files.manifest import FileFacts, HashedFile
from herl_megatron.megatron.convert.layout import Block, Place, TrainerLayout, blocks, place
from herl_megatron.megatron.scratch import Scratch
from herl_megatron.megatron.torch_records import without_checksums, write_error
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.parameters import Layout, Parameter, parameters, shard


class ParameterSource(Protocol):
    """Where weights are read from: `HFFolder` or `MegatronFolder`."""

    def dtype(self, parameter: Parameter) -> torch.dtype:
        """The dtype in which a parameter is stored."""

    def tensors(self, parameter: Parameter) -> list[torch.Tensor]:
        """The parameter's whole HF tensors."""

    def rows(self, parameter: Parameter, index: int, start: int, stop: int) -> torch.Tensor:
        """Rows `start:stop` of its HF tensor `index`."""


@dataclass(frozen=True)
class _Piece:
    """One block of one TP rank, to be read when it is written."""

    parameter: Parameter
    block: Block
    rank: int
    at: Place
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size(tuple(1 for _ in self.at.lead) + self.block.sizes)

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    @property
    def item(self) -> WriteItem:
        offsets = torch.Size(self.at.lead + self.block.offsets)
        return WriteItem(
            index=MetadataIndex(self.at.key, offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offsets=offsets, sizes=self.shape),
                properties=TensorProperties(dtype=self.dtype),
                size=torch.Size(self.at.global_shape),
            ),
        )


class MegatronWriter:
    """Plans the files of a checkpoint and writes them."""

    def __init__(
        self,
        source: ParameterSource,
        architecture: Architecture,
        layout: TrainerLayout,
        *,
        dtype: torch.dtype | None,
        file_bytes: int,
    ) -> None:
        """dtype: of the weights; none keeps each as it is stored.
        file_bytes: a file is closed when it is at least as large.

        Raises:
            ValueError: the tensors that one checkpoint tensor is made of differ in dtype.
        """
        self._source, self._architecture, self._layout = source, architecture, layout
        self._dtypes: dict[str, torch.dtype] = {}
        self._plans: list[list[_Piece]] = []
        for rank_pieces in self._pieces_by_rank(dtype):
            room = 0
            for piece in rank_pieces:
                if room <= 0:
                    self._plans.append([])
                    room = file_bytes
                self._plans[-1].append(piece)
                room -= piece.num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of all values, without headers."""
        return sum(piece.num_bytes for plan in self._plans for piece in plan)

    @property
    def num_pieces(self) -> int:
        """Records to be written."""
        return sum(len(plan) for plan in self._plans)

    def write(
        self, folder: Path, *, threads: int, done: Callable[[int], object]
    ) -> dict[str, FileFacts]:
        """Write everything into `folder`, which exists and is empty; `done` is told of bytes.

        Returns size and hash of the files with weights, by name.

        Raises:
            OSError: a file could not be written.
            ValueError: the source is damaged.
        """
        pieces = {piece.item.index: piece for plan in self._plans for piece in plan}
        planner = _Planner(self._source, self._architecture, self._layout.tp, pieces)
        plans = [SavePlan([piece.item for piece in plan]) for plan in self._plans]
        plans, metadata = create_default_global_save_plan(plans)
        writer = FileSystemWriter(folder, sync_files=False)
        writer.fs = files = _HashedFiles()
        plans = writer.prepare_global_plan(plans)

        def write_file(number: int) -> list[WriteResult]:
            try:
                with without_checksums():  # torch keeps this by thread
                    results: list[WriteResult] = writer.write_data(plans[number], planner).wait()
            except RuntimeError as error:
                # After a failed write torch.save cannot close its archive, which hides why.
                raise write_error(error) or error from None
            done(sum(piece.num_bytes for piece in self._plans[number]))
            return results

        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(write_file, number) for number in range(len(plans))]
            try:
                results = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a full disk will not get better
                raise
        facts = dict(files.facts)
        _finish(folder, writer, metadata, results, self._layout)
        return facts

    def _pieces_by_rank(self, dtype: torch.dtype | None) -> Iterator[list[_Piece]]:
        """What each rank of the layout holds that no earlier one has, stage by stage."""
        layout = self._layout
        by_stage: list[list[Parameter]] = [[] for _ in range(layout.pp)]
        for parameter in parameters(self._architecture):
            if not parameter.tied_copy:
                by_stage[layout.stage(parameter, self._architecture)].append(parameter)
        for stage in by_stage:
            for rank in range(layout.stage_ranks):
                mine = [p for p in stage if self._holds(p, rank)]
                yield [
                    piece for p in mine for piece in self._pieces(p, rank % layout.cut(p), dtype)
                ]

    def _holds(self, parameter: Parameter, rank: int) -> bool:
        """Whether rank `rank` of a stage is the first to hold its part of the parameter."""
        size = self._layout.cut(parameter)
        if parameter.expert is None:
            return rank == 0 or (rank < size and not parameter.replicated)
        assert self._architecture.experts is not None
        owner = parameter.expert // (self._architecture.experts.count // self._layout.ep)
        return rank // size == owner

    def _pieces(
        self, parameter: Parameter, rank: int, dtype: torch.dtype | None
    ) -> Iterator[_Piece]:
        at = place(parameter, self._architecture, tp=self._layout.tp)
        kind = dtype or self._source.dtype(parameter)
        if self._dtypes.setdefault(at.key, kind) is not kind:
            raise ValueError(
                f"{parameter.hf_names[0]} is stored in {kind}, other layers' in"
                f" {self._dtypes[at.key]}, but in a Megatron checkpoint they are one tensor;"
                " convert to one dtype with --dtype"
            )
        tp = self._layout.cut(parameter)
        for block in blocks(parameter, self._architecture, rank=rank, tp=tp):
            yield _Piece(parameter, block, rank, at, kind)


class _HashedFiles(FileSystem):
    """The disk, hashing what is written to it."""

    def __init__(self) -> None:
        self.facts: dict[str, FileFacts] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """A new file; `facts` has it when it is closed."""
        assert mode == "wb", f"files are written, not opened with {mode!r}"
        with HashedFile(Path(path)) as file:
            yield file
        self.facts[Path(path).name] = file.facts()


class _Planner(DefaultSavePlanner):
    """Gives the writer one value at a time, read at that moment."""

    def __init__(
        self,
        source: ParameterSource,
        architecture: Architecture,
        tp: int,
        pieces: dict[MetadataIndex, _Piece],
    ) -> None:
        super().__init__(flatten_state_dict=False)
        self._scratch = Scratch()
        self._source, self._architecture, self._tp, self._pieces = source, architecture, tp, pieces

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        """The item's values in a storage of exactly their size."""
        piece = self._pieces[write_item.index]
        values = self._scratch.dense(self._read(piece), piece.dtype).view(piece.shape)
        if values.untyped_storage().nbytes() == values.nbytes:
            return values
        # The same memory again, as a storage that ends where the values end: what is written is
        # the whole storage, and a copy is not needed.
        raw = values.flatten().view(torch.uint8).numpy()
        return torch.frombuffer(raw, dtype=piece.dtype).view(piece.shape)

    def _read(self, piece: _Piece) -> torch.Tensor:
        parameter, block = piece.parameter, piece.block
        if parameter.layout is Layout.QKV:
            tensors = self._source.tensors(parameter)
            return shard(parameter, tensors, self._architecture, rank=piece.rank, size=self._tp)
        if block.tensor is None:
            return torch.zeros(block.sizes, dtype=piece.dtype)
        rows = self._source.rows(parameter, block.tensor, *block.rows)
        if parameter.layout is Layout.ROW:
            return rows[:, block.offsets[1] : block.offsets[1] + block.sizes[1]]
        return rows


def _finish(
    folder: Path,
    writer: FileSystemWriter,
    metadata: Metadata,
    results: Sequence[list[WriteResult]],
    layout: TrainerLayout,
) -> None:
    """What makes the files a checkpoint: the index, Megatron's format marker and common state."""
    writer.finish(metadata, list(results))
    torch.save({"layout": layout.axes}, folder / "common.pt")
    backend = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (folder / "metadata.json").write_text(json.dumps(backend, allow_nan=False), encoding="utf-8")
