"""Write weights as safetensors shards, a block of rows at a time.

The library's own writer wants all tensors of a shard in memory. A safetensors file is a JSON
header with names, dtypes, shapes and offsets, and then the bytes in that order (format:
huggingface.co/docs/safetensors), so a shard whose tensors are known can be written as they come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from herl_megatron.files.manifest import FileFacts, HashedFile
from herl_megatron.megatron.convert.megatron_writer import ParameterSource
from herl_megatron.megatron.scratch import Scratch
from herl_megatron.megatron.soundness import largest_weight
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.hf_folder import WrittenShards, shard_name
from herl_megatron.models.parameters import Layout, Parameter, parameters

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_BLOCK_BYTES = 8 << 20


class HFWriter:
    """Plans the shards of a model and writes them."""

    def __init__(
        self,
        source: ParameterSource,
        architecture: Architecture,
        *,
        dtype: torch.dtype | None,
        shard_bytes: int,
    ) -> None:
        """dtype: of the weights; none keeps each as it is stored.
        shard_bytes: largest shard, unless one parameter is larger.
        """
        self._source = source
        sent = [p for p in parameters(architecture) if not p.tied_copy]
        self._dtypes = {p.name: dtype or source.dtype(p) for p in sent}
        self._shards: list[list[Parameter]] = []
        room = 0
        for parameter in sent:
            size = self._num_bytes(parameter)
            if not self._shards or size > room:
                self._shards.append([])
                room = shard_bytes
            self._shards[-1].append(parameter)
            room -= size
        for shard in self._shards:  # larger items first, so that every tensor is aligned
            shard.sort(key=lambda parameter: -self._dtypes[parameter.name].itemsize)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(self._num_bytes(parameter) for shard in self._shards for parameter in shard)

    @property
    def num_files(self) -> int:
        """Shards to be written."""
        return len(self._shards)

    def write(
        self, folder: Path, *, threads: int, done: Callable[[int], object]
    ) -> tuple[WrittenShards, dict[str, FileFacts]]:
        """Write all shards into `folder`, which exists; `done` is told of bytes.

        Returns what was written, and size and hash of each shard by name.

        Raises:
            OSError: a file could not be written.
            ValueError: the source is damaged, or holds NaN or infinity.
        """
        total = len(self._shards)
        scratch = Scratch()

        def write_shard(number: int) -> tuple[str, FileFacts]:
            name = shard_name(number, total)
            with HashedFile(folder / name) as file:
                file.write(self._header(self._shards[number]))
                for parameter in self._shards[number]:
                    for values in self._blocks(parameter):
                        _require_finite(values, parameter)
                        values = scratch.dense(values, self._dtypes[parameter.name])
                        file.write(values.flatten().view(torch.uint8).numpy())
                    done(self._num_bytes(parameter))
            return name, file.facts()

        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(write_shard, number) for number in range(total)]
            try:
                facts = dict(job.result() for job in jobs)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a full disk will not get better
                raise
        first = self._dtypes[next(iter(self._dtypes))]  # the embedding's
        return WrittenShards(tuple(facts), total, str(first).removeprefix("torch.")), facts

    def _num_bytes(self, parameter: Parameter) -> int:
        values = sum(math.prod(shape) for shape in parameter.hf_shapes)
        return values * self._dtypes[parameter.name].itemsize

    def _header(self, shard: list[Parameter]) -> bytes:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for parameter in shard:
            dtype = self._dtypes[parameter.name]
            for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
                start, end = end, end + math.prod(shape) * dtype.itemsize
                header[name] = {
                    "dtype": _NAMES[dtype],
                    "shape": list(shape),
                    "data_offsets": [start, end],
                }
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _blocks(self, parameter: Parameter) -> Iterator[torch.Tensor]:
        """The parameter's HF tensors one after the other, in blocks of rows."""
        if parameter.layout is Layout.QKV:  # lies fused in Megatron, so it is read as a whole
            yield from self._source.tensors(parameter)
            return
        for index, shape in enumerate(parameter.hf_shapes):
            row_bytes = math.prod(shape[1:]) * self._source.dtype(parameter).itemsize
            step = max(1, _BLOCK_BYTES // row_bytes)
            for start in range(0, shape[0], step):
                yield self._source.rows(parameter, index, start, min(start + step, shape[0]))


def _require_finite(values: torch.Tensor, parameter: Parameter) -> None:
    if not math.isfinite(largest_weight([values])):
        raise ValueError(
            f"{parameter.hf_names[0]} (Megatron's {parameter.name}) holds NaN or infinity: these"
            " weights are no model's, so nothing is exported; take an earlier checkpoint"
        )
