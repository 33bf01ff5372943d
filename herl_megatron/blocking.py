"""Run a coroutine to its end from plain code, in a script or where an event loop runs (Jupyter)."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def run_blocking(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `job()`, or what it raises.

    Where a loop is running in this thread, `job` gets a loop in a thread of its own and the running
    one stands still meanwhile. Ctrl-C cancels the job, waits until it has ended what it started and
    then is a KeyboardInterrupt; SIGTERM cancels it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job())
    return _Thread(job).result()


class _Thread(Generic[T]):
    """A job in a loop and a thread of its own."""

    def __init__(self, job: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._job = job
        self._task: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()
        self._end: Future[T] = Future()
        # A daemon, so that a second Ctrl-C can leave a job that does not end.
        self._thread = threading.Thread(target=self._work, name="herl", daemon=True)
        self._waiting = False
        self._early: Callable[[], None] | None = None

    def result(self) -> T:
        with _signals(on_int=self._on(_interrupt), on_term=self._on(self._cancel)):
            self._thread.start()
            try:
                self._waiting = True
                if self._early is not None:
                    self._early()
                return self._end.result()
            except KeyboardInterrupt:
                self._cancel()
                self._thread.join()
                raise

    def _on(self, act: Callable[[], None]) -> Callable[[], None]:
        """A signal's handler: one that comes while the thread starts has nothing to end yet, and
        waits; raised there, it would leave a job that nobody ends."""

        def handle() -> None:
            if self._waiting:
                act()
            else:
                self._early = act

        return handle

    def _work(self) -> None:
        try:
            self._end.set_result(asyncio.run(self._main()))
        except BaseException as error:  # raised again by whoever waits
            self._end.set_exception(error)

    async def _main(self) -> T:
        task = asyncio.current_task()
        assert task is not None, "a coroutine that runs has a task"
        self._task.set_result((asyncio.get_running_loop(), task))
        return await self._job()

    def _cancel(self) -> None:
        # A thread whose loop could not be made has an end and never a task.
        either: tuple[Future[Any], ...] = self._task, self._end
        wait(either, return_when=FIRST_COMPLETED)
        if not self._end.done():
            loop, task = self._task.result()
            with suppress(RuntimeError):  # the loop was closed meanwhile: the job has ended
                loop.call_soon_threadsafe(task.cancel)


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def _signals(*, on_int: Callable[[], None], on_term: Callable[[], None]) -> Iterator[None]:
    """While the main thread waits, signals are for the job: the loop that stands still would take
    Ctrl-C for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: on_int()),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: on_term()),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
