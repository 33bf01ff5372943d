"""Write a sharded state in the background while training goes on.

    write = CheckpointWrite(state, folder, background=...)     # collective: plan
    ...                                                        # `WriteGate` says what has to wait
    if write.done(): write.finish()                            # collective, once all ranks are done

Planned by Megatron's `dist_checkpointing`, whose own background writers are processes: forked from
a rank that holds Ray's threads, which is not safe, or spawned ones, which fail without a GPU. Here
a thread of the rank copies, writes and flushes to disk, which leaves the interpreter free. Training
is held up only where the next optimizer step comes before the copy has ended. Without `background`
everything is written before the constructor returns, straight from where it lies.
"""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.filesystem import (
    DEFAULT_SUFFIX,
    SerializationFormat,
    _write_item,
)
from torch.distributed.checkpoint.storage import WriteResult

from herl_megatron.device import mark_work
from herl_megatron.files.manifest import FileFacts, HashedFile
from herl_megatron.megatron.staging import StagingMemory, exact_storage
from herl_megatron.megatron.torch_records import without_checksums, write_error
from herl_megatron.megatron.write_gate import Unchanged, WriteGate


@dataclass(frozen=True)
class Background:
    """How a state is copied and written while training goes on."""

    staging: StagingMemory
    """Where to."""
    gate: WriteGate
    """Closed until everything is copied."""
    held: Sequence[torch.Tensor]
    """Tensors that only who waits at the gate changes; all others are copied at once."""


class CheckpointWrite:
    """One rank's part of a checkpoint on its way to disk."""

    def __init__(
        self, state: dict[str, Any], folder: str, *, background: Background | None
    ) -> None:
        """Plan together with all ranks, copy what may change at any time and start the rest.

        Raises:
            CheckpointingException: the ranks' states do not make one.
        """
        apply_factories(state)
        held = {_memory(tensor) for tensor in background.held} if background else set()
        for item in nested_values(state):
            if isinstance(item, ShardedTensor) and item.data is not None:
                if background is not None and _memory(item.data) not in held:
                    item.data = item.data.detach().clone()
                item.data = exact_storage(item.data)  # or the planner would copy it
        self._results: queue.Queue[Any] = queue.Queue()
        # Where Megatron's writer looks for what was written; its default is a process of its own.
        filesystem_async._results_queue = self._results
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            request = dist_checkpointing.save(
                state,
                folder,
                sharded_strategy=get_default_save_sharded_strategy(),
                async_sharded_save=True,
            )
        self._finalize = request.finalize_fns
        self._folder = Path(folder)
        self._written: dict[int, list[WriteResult]] | None = None
        self._facts: dict[str, FileFacts] = {}
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if request.preload_fn is None:  # a rank may have nothing of its own to write
            return
        if background is not None:
            background.gate.close()
        self._thread = threading.Thread(
            target=self._work, args=(request, background), name="checkpoint", daemon=True
        )
        self._started_after = mark_work()
        self._unchanged = Unchanged(background.held if background else [])
        self._thread.start()
        if background is None:
            self._thread.join()

    def done(self) -> bool:
        """Whether this rank has written its part.

        Raises:
            OSError: it could not (no space, no permission).
        """
        if self._thread is not None and self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def wait(self) -> None:
        """Wait until this rank no longer writes, whatever became of it."""
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> dict[str, FileFacts]:
        """Write the index and make the checkpoint complete. Collective; every rank has written.

        Returns size and hash of this rank's files, by name.

        Raises:
            OSError: a rank could not write; on every rank, with the reason on that one and rank 0.
        """
        self.wait()
        if self._thread is not None:
            self._results.put(self._error or self._written)
        filesystem_async._results_queue = None
        dist.barrier()
        try:
            for finalize in self._finalize:
                finalize()
        except CheckpointException as error:  # no Exception: it would end a Ray worker
            raise self._error or OSError(f"a rank could not write: {error}") from error
        if dist.get_rank() == 0:
            _flush_index(self._folder)
        return self._facts

    def _work(self, request: Any, background: Background | None) -> None:
        try:
            if background is None:
                buckets = request.preload_fn()
            else:
                try:
                    buckets = self._copied(request, background.staging)
                finally:
                    background.gate.open()
            with without_checksums():
                self._written, self._facts = _write_files(buckets, request.async_fn.args[0])
        except Exception as error:  # the thread's border: raised again by `done` or `finish`
            self._error = write_error(error) or error

    def _copied(self, request: Any, staging: StagingMemory) -> list[Any]:
        """The request's files with their tensors copied."""
        buckets = request.async_fn_args[1]
        tensors = [tensor for *_, (_, tensors) in buckets for _, tensor in tensors]
        copies = iter(staging.copy(tensors, after=self._started_after))
        self._unchanged.check()
        return [
            (path, name, (objects, [(item, next(copies)) for item, _ in tensors]))
            for path, name, (objects, tensors) in buckets
        ]


def _memory(tensor: torch.Tensor) -> int:
    """Address of the memory that a tensor is a part of."""
    return tensor.untyped_storage().data_ptr()


def _write_files(
    buckets: list[Any], transforms: list[Any]
) -> tuple[dict[int, list[WriteResult]], dict[str, FileFacts]]:
    """Write one file after the other in this thread: what was written by file number, as Megatron
    wants it, and the hashes by file name.

    Raises:
        OSError: a file could not be written.
    """
    written, facts = {}, {}
    (transform,) = transforms
    for number, (path, name, (objects, tensors)) in enumerate(buckets):
        with HashedFile(Path(path)) as file:
            written[number] = [
                _write_item(transform, file, data, item, name, SerializationFormat.TORCH_SAVE)
                for item, data in (*objects, *tensors)
            ]
            file.sync()
            facts[name] = file.facts()
    return written, facts


def _flush_index(folder: Path) -> None:
    """To disk what Megatron left to the operating system: the files that only rank 0 writes."""
    for path in folder.iterdir():
        if path.suffix != DEFAULT_SUFFIX:
            with path.open("rb") as file:
                os.fsync(file.fileno())
