"""An engine over several GPUs: vLLM's worker processes, which must end with the engine.

vLLM starts one process per GPU under the engine's own (its `mp` executor) and sends every step and
every weight bucket to all of them; each maps the bucket's file and keeps its own slices. Left to
themselves, workers that hang outlive an engine that was killed, and keep their GPU's memory.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from pathlib import Path

from vllm.distributed.device_communicators.shm_broadcast import ShmRingBuffer
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SHARED_MEMORY = Path("/dev/shm")
_WORKER = "(Worker"  # begins a worker's lines


def end_with_engine(engine_pid: int) -> None:
    """Called in a worker: have the kernel kill it with the engine, even if it hangs.

    The kernel watches the thread that started this process. It is the engine's own thread, which
    ends with the engine's process, or after the workers.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != engine_pid:  # it was killed before this took effect
        os._exit(1)


def unlink_shared_memory() -> None:
    """Called in the engine and in every worker once all have mapped it: take its name away.

    vLLM removes its queues and the CPU's collective buffers at an orderly end only; whoever is
    killed would leave them for ever.
    """
    gc.unfreeze()  # vLLM hides what it has made by now from the collector
    for ring in gc.get_objects():  # it keeps them in several places
        if type(ring) is ShmRingBuffer and ring.is_creator:
            ring.shared_memory.unlink()
            ring.is_creator = False  # or it would do the same at its end
    gc.freeze()
    identity = os.environ.get("VLLM_DIST_IDENT")  # set by vLLM's CPU worker
    if identity:
        for path in _SHARED_MEMORY.glob(f"{identity}-*"):
            path.unlink(missing_ok=True)  # the other workers do the same


def lost_workers(engine: LLMEngine) -> RuntimeError | None:
    """What to say if a worker process is gone: vLLM's own errors then speak of its queues."""
    executor = engine.model_executor
    if not isinstance(executor, MultiprocExecutor):
        return None
    codes = {handle.rank: handle.proc.exitcode for handle in executor.workers}
    if not executor.is_failed and all(code is None for code in codes.values()):
        return None
    ended = [f"{rank} (exit code {code})" for rank, code in codes.items() if code is not None]
    return RuntimeError(f"worker processes of the vLLM engine ended, TP ranks {', '.join(ended)}")


def start_failure(error: Exception) -> RuntimeError:
    """What to say if workers did not start: vLLM writes the reason to this process's output only.

    A Ray actor's output is a file.
    """
    log = Path(os.readlink("/proc/self/fd/1"))
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    reasons = [line.partition("] ")[2] for line in lines if _WORKER in line and "Error: " in line]
    why = reasons[-1] if reasons else error
    return RuntimeError(f"a worker process of the vLLM engine did not start: {why} (log: {log})")
