"""Run a function on several ranks, each a process of its own, with a time limit.

    def work(rank: int, world_size: int, init_method: str, tp: int) -> float: ...
    results = run_ranks(work, 2, 2)          # a list with one result per rank

`work` is a module-level function; arguments and results are pickled. The ranks are forked from a
clean server process that has imported Megatron-Core once, so a case costs a fraction of a second
instead of the import, and threads of the test process (Ray, vLLM, OpenMP) cannot be inherited.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

from tests.limits import HANG_S

os.environ.setdefault("OMP_NUM_THREADS", "1")

_PRELOAD = [
    "tests.distributed.preload",
]


class RankError(RuntimeError):
    """A rank raised, died or ran past the limit; the message holds its traceback."""


def run_ranks(
    work: Callable[..., Any], world_size: int, *args: Any, limit_s: float = HANG_S
) -> list[Any]:
    """`work(rank, world_size, init_method, *args)` on every rank; results in rank order.

    Raises:
        RankError: with the first failing rank's traceback; all other ranks are stopped.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        readers, processes = [], []
        for rank in range(world_size):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_run_rank,
                args=(writer, work, rank, world_size, f"file://{folder}/store", args),
            )
            process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        try:
            return _collect(readers, processes, limit_s)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _run_rank(
    writer: multiprocessing.connection.Connection,
    work: Callable[..., Any],
    rank: int,
    world_size: int,
    init_method: str,
    args: tuple[Any, ...],
) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        answer = (True, work(rank, world_size, init_method, *args))
        # Plain pickle copies tensors; Connection.send would share their memory, which dies with
        # this process.
        writer.send_bytes(pickle.dumps(answer))
    except BaseException:
        writer.send_bytes(pickle.dumps((False, traceback.format_exc())))
        os._exit(1)  # do not wait for collectives that will never complete


def _collect(
    readers: list[multiprocessing.connection.Connection], processes: list[Any], limit_s: float
) -> list[Any]:
    results: dict[int, Any] = {}
    end = time.monotonic() + limit_s
    waiting = {reader: rank for rank, reader in enumerate(readers)}
    while waiting:
        ready = multiprocessing.connection.wait(list(waiting), timeout=end - time.monotonic())
        if not ready:
            raise RankError(f"ranks {sorted(waiting.values())} gave no result in {limit_s} s")
        for reader in ready:
            rank = waiting.pop(reader)  # type: ignore[call-overload]
            try:
                succeeded, value = pickle.loads(reader.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                processes[rank].join()
                raise RankError(
                    f"rank {rank} died with exit code {processes[rank].exitcode}"
                ) from None
            if not succeeded:
                raise RankError(f"rank {rank}:\n{value}")
            results[rank] = value
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    return [results[rank] for rank in range(len(readers))]
