"""A coroutine run from plain code, with and without a loop that is running."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from herl_megatron.blocking import run_blocking
from herl_megatron.errors import SavedForResume
from herl_megatron.run.stop import stop_request
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]


async def answer() -> tuple[int, bool]:
    await asyncio.sleep(0.01)
    return 42, threading.current_thread() is threading.main_thread()


def in_a_loop(work: Callable[[], Any]) -> Any:
    """As in Jupyter: plain code of a cell, in a thread whose loop is running."""

    async def cell() -> Any:
        return work()

    return asyncio.run(cell())


def test_without_a_loop_it_is_this_thread() -> None:
    assert run_blocking(answer) == (42, True)


def test_in_a_loop_it_is_another_thread() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert in_a_loop(lambda: run_blocking(answer)) == (42, False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_one_after_another_and_outside_of_the_main_thread() -> None:
    found: list[Any] = []

    def work() -> None:
        found.extend([run_blocking(answer), in_a_loop(lambda: run_blocking(answer))])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(42, False), (42, False)]


@pytest.mark.parametrize(
    "error", [ValueError("mend me"), SavedForResume("saved"), TimeoutError("late"), SystemExit(3)]
)
@pytest.mark.parametrize("within", [lambda work: work(), in_a_loop])
def test_errors_keep_their_type(error: BaseException, within: Callable[..., Any]) -> None:
    async def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        within(lambda: run_blocking(fails))
    assert caught.value is error


def test_a_stop_request_in_another_thread_leaves_the_signal_alone() -> None:
    before = signal.getsignal(signal.SIGUSR1)

    async def job() -> bool:
        with stop_request() as request:
            return request.made

    assert in_a_loop(lambda: run_blocking(job)) is False
    assert signal.getsignal(signal.SIGUSR1) == before


_WAITS = """
import asyncio, os, signal, sys
from herl_megatron.blocking import run_blocking

async def job():
    try:
        print("started", flush=True)
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.2)
        print("ended in order", flush=True)

def call():
    try:
        run_blocking(job)
    except BaseException as error:
        print(type(error).__name__, flush=True)

async def cell():
    call()

asyncio.run(cell()) if sys.argv[1] == "loop" else call()
print("goes on", flush=True)
"""


@pytest.mark.parametrize("where", ["script", "loop"])
def test_ctrl_c_ends_the_job_in_order(where: str) -> None:
    assert interrupted(where, signal.SIGINT) == ["ended in order", "KeyboardInterrupt", "goes on"]


def test_sigterm_ends_a_job_in_another_thread_in_order() -> None:
    assert interrupted("loop", signal.SIGTERM) == ["ended in order", "CancelledError", "goes on"]


def interrupted(where: str, number: signal.Signals) -> list[str]:
    """What the process says after the signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITS, where], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        said, _ = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    return said.splitlines()


@pytest.mark.parametrize(
    ("number", "error"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "CancelledError")]
)
def test_a_signal_while_the_jobs_thread_starts_ends_it_in_order(number: str, error: str) -> None:
    """The job had begun, and the thread that had started it was not yet waiting for it."""
    slow = f"""
import threading, time
start = threading.Thread.start
def start_slowly(self):
    start(self)
    if self.name == "herl":
        time.sleep(0.3)
        os.kill(os.getpid(), signal.{number})
        time.sleep(0.3)
threading.Thread.start = start_slowly
"""
    done = subprocess.run(
        [sys.executable, "-c", _WAITS.replace("async def job", f"{slow}\nasync def job"), "loop"],
        capture_output=True, text=True, cwd=ROOT, timeout=HANG_S,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["started", "ended in order", error, "goes on"], done.stderr


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("when", ["without a loop", "loop closed"])
def test_a_signal_where_there_is_no_job_to_end(when: str, number: str) -> None:
    """The thread that waits for it hung, or it raised that the loop is closed for the result."""
    patched = f"""
import threading, time
run, start = asyncio.run, threading.Thread.start
def signalled():
    os.kill(os.getpid(), signal.{number})
    time.sleep(0.3)
def run_or_fail(main):
    if threading.current_thread().name != "herl":
        return run(main)
    if {when == "without a loop"}:
        main.close()
        raise OSError("no loop")
    run(main)
    signalled()
    return "result"
def start_slowly(self):
    start(self)
    if self.name == "herl" and {when == "without a loop"}:
        time.sleep(0.3)
        signalled()
asyncio.run, threading.Thread.start = run_or_fail, start_slowly
"""
    code = _WAITS.replace("sleep(60)", "sleep(0)").replace(
        "        run_blocking(job)", "        print(run_blocking(job), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.replace("async def job", f"{patched}\nasync def job"), "loop"],
        capture_output=True, text=True, cwd=ROOT, timeout=HANG_S,
    )  # fmt: skip
    fails = when == "without a loop"
    end = "KeyboardInterrupt" if number == "SIGINT" else "OSError" if fails else "result"
    said = done.stdout.splitlines()
    assert said == [*([] if fails else ["started", "ended in order"]), end, "goes on"], done.stderr


def test_the_coroutine_is_made_in_its_own_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def job() -> None:
        loops.append(asyncio.get_running_loop())

    def make() -> Coroutine[Any, Any, None]:
        return job()

    async def cell() -> None:
        run_blocking(make)
        loops.append(asyncio.get_running_loop())

    asyncio.run(cell())
    assert loops[0] is not loops[1]
