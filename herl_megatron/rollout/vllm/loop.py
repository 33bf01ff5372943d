"""The one thread that owns a vLLM engine.

vLLM's synchronous engine is not safe to call from two threads, so a single thread builds it, runs
commands between two steps and steps it while requests are open. Whatever ends the thread fails
everything that is waiting, with the reason: nobody waits for a dead engine.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.v1.engine.llm_engine import LLMEngine

from herl_megatron.rollout.vllm.tp_workers import lost_workers

T = TypeVar("T")
EngineCommand = tuple[Callable[[LLMEngine], Any], "Future[Any]"]


class EngineThread:
    """Builds an engine in its own thread and steps it.

    build: makes the engine; its failure is raised by the constructor.
    deliver: receives every finished output, on the engine thread.
    on_end: receives the reason when the thread ends (an error, or the close), on the engine thread.
    on_step: is called after each step, before its outputs are delivered, on the engine thread.
    """

    def __init__(
        self,
        *,
        build: Callable[[], LLMEngine],
        deliver: Callable[[RequestOutput], None],
        on_end: Callable[[RuntimeError], None],
        on_step: Callable[[LLMEngine], None],
    ) -> None:
        self._build = build
        self._deliver = deliver
        self._on_end = on_end
        self._on_step = on_step
        self._commands: queue.SimpleQueue[EngineCommand] = queue.SimpleQueue()
        self._lock = threading.Lock()  # orders `call` against the end of the thread
        self._closing = threading.Event()
        self._ended: RuntimeError | None = None
        self._working_since: float | None = None  # start of the step or command under way
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="vllm-engine", daemon=True
        )
        self._thread.start()
        started.result()

    def call(self, function: Callable[[LLMEngine], T]) -> Future[T]:
        """Run `function(engine)` between two steps; its error is the future's, not the thread's."""
        future: Future[T] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(self._ended)
            else:
                self._commands.put((function, future))
        return future

    def stalled_s(self) -> float:
        """Seconds that the step or command under way has taken; 0 with nothing to do.

        Never waits for the thread, so that a hung one can be told from one that works.
        """
        since = self._working_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Run the commands given so far, end the thread and wait for it; later calls fail."""
        self.call(lambda _: self._closing.set()).exception()
        self._closing.set()  # a dead thread runs no commands
        self._thread.join()

    def _run(self, started: Future[None]) -> None:
        try:
            engine = self._build()
        except BaseException as error:  # thread border: handed to the constructor
            started.set_exception(error)
            return
        started.set_result(None)
        reason = RuntimeError("the vLLM engine was shut down")
        try:
            self._serve(engine)
        except BaseException as error:  # thread border: handed to everyone who waits
            died = f"the vLLM engine thread died: {type(error).__name__}: {error}"
            reason = lost_workers(engine) or RuntimeError(died)
            reason.__cause__ = error
        self._end(reason)
        # A process that exits without `close` must find this thread idle, not tearing vLLM down.
        self._closing.wait()
        with _imports_stay_frozen():
            engine.engine_core.shutdown()

    def _serve(self, engine: LLMEngine) -> None:
        while not self._closing.is_set():
            self._run_commands(engine, wait=not engine.has_unfinished_requests())
            if engine.has_unfinished_requests() and not self._closing.is_set():
                self._working_since = time.monotonic()
                outputs = engine.step()
                self._on_step(engine)
                for output in outputs:
                    assert isinstance(output, RequestOutput), f"pooling output {output}"
                    if output.finished:
                        self._deliver(output)

    def _run_commands(self, engine: LLMEngine, *, wait: bool) -> None:
        while True:
            if wait:
                self._working_since = None
            try:
                function, future = self._commands.get(block=wait)
            except queue.Empty:
                return
            wait = False
            self._working_since = time.monotonic()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(engine))
            except Exception as error:  # handed to the caller of `call`
                lost = lost_workers(engine)
                future.set_exception(lost or error)
                if lost is not None:
                    raise lost from error

    def _end(self, reason: RuntimeError) -> None:
        self._working_since = None
        with self._lock:
            self._ended = reason
        while not self._commands.empty():
            _, future = self._commands.get()
            if future.set_running_or_notify_cancel():
                future.set_exception(reason)
        self._on_end(reason)


@contextmanager
def _imports_stay_frozen() -> Iterator[None]:
    """On a CPU, where an engine's end frees no GPU's memory, the collector is not to look at all
    that was ever imported: vLLM has it do so several times, a second of CPU time."""
    unfreeze = gc.unfreeze
    if current_platform.is_cpu():
        gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.unfreeze = unfreeze
