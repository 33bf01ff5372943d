"""Start or join Ray, watch over it, and leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node

from herl_megatron.cluster.address import silence_of
from herl_megatron.cluster.health import WorkerError
from herl_megatron.cluster.orphans import kill_marked, orphan_guard
from herl_megatron.cluster.ray_watch import RayWatch, parts_of_ray
from herl_megatron.config.schema import ClusterConfig
from herl_megatron.observability.phases import phases

logger = logging.getLogger(__name__)

_MIN_OBJECT_STORE_BYTES = 80 << 20  # Ray refuses less than about 75 MiB
_MAX_OBJECT_STORE_BYTES = 1 << 30
_LONGEST_TMPDIR = 25  # characters; the name of a socket in it may have 107, of which Ray takes 82
_SHM = Path("/dev/shm")
_TOO_SLOW = "timed out during startup"


def object_store_bytes(free_shm_bytes: int) -> int:
    """Size of a local Ray object store: a quarter of the free shared memory, 80 MiB to 1 GiB.

    Rows and log-probs pass through it; weights do not (they have their own buckets).
    """
    return max(_MIN_OBJECT_STORE_BYTES, min(_MAX_OBJECT_STORE_BYTES, free_shm_bytes // 4))


def check_address(config: ClusterConfig) -> None:
    """Refuse a `cluster.address` where no Ray answers: Ray would try for minutes or for ever.

    Raises:
        ValueError: with the address and what to do.
    """
    # Where "auto" leads, if that is said: Ray reads the same variable.
    address = os.environ.get("RAY_ADDRESS", "") if config.address == "auto" else config.address
    if address in ("", "auto", "local"):
        return
    if problem := silence_of(address):
        raise ValueError(
            f"cluster.address is {address!r}, but {problem}; give HOST:PORT of a running cluster"
            " (`ray start --head` prints it), or leave it empty to start Ray on this machine"
        )


@contextmanager
def ray_session(config: ClusterConfig, *, run: Path | None = None) -> Iterator[RayWatch]:
    """Join `cluster.address`, or start a Ray on this machine that ends with the block.

    One that is started listens on the loopback interface alone, and its session folder goes with
    it. Actors ask for no logical CPUs, so a laptop with two cores can hold a whole run; what they
    really use is set by `cluster.threads_per_rank`.

    run: the run's folder, for what is said where this process is killed.

    Raises:
        RayLost: a process of Ray's own died; the block was cancelled.
        WorkerError: Ray did not start.
    """
    # Ray hides accelerators from actors that ask for none and warns about a future change of it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers that Ray starts before anybody asks would wait idle: every actor has its own settings.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ray gives its workers, and the agents that it waits for at its start, the last rest of a busy
    # machine: beside two other processes an engine started ten times as slowly.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with ExitStack() as stack:
        folder = None if config.address else stack.enter_context(_session_folder())
        # A joined Ray's processes end without the guard, files do not.
        guard = stack.enter_context(orphan_guard(folder, run=run))
        what = f"joining Ray at {config.address}" if config.address else "starting Ray"
        with phases(what, announce=True):
            if config.address:
                _join(config.address)
            else:
                with _nothing_left(folder, guard):
                    _start_patiently(folder, guard)
        rest = stack.enter_context(ExitStack())
        if not config.address:
            # Its agents outlive it by seconds, and would write into the folder that is removed.
            rest.callback(kill_marked, guard, folder, of=("ray::", str(Path(ray.__file__).parent)))
        stack.callback(ray.shutdown)
        _cancel_on_sigterm()
        watch = RayWatch(parts_of_ray(), own=not config.address)
        stack.callback(watch.stop)
        try:
            yield watch
        except (asyncio.CancelledError, RuntimeError, TimeoutError) as error:
            if watch.lost and not config.address:
                rest.callback(kill_marked, guard, folder)  # Ray can no longer end its workers
            watch.raise_instead_of(error)
            raise


def _join(address: str) -> None:
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Elsewhere nodes may have their Python at another path: theirs is left to them.
            runtime_env=_quoted_python() if " " in sys.executable else None,
        )
    except ConnectionError as error:
        raise ValueError(
            f"cluster.address is {address!r}: {str(error).splitlines()[0]}; a cluster with tokens"
            " (`ray start` says so) wants RAY_AUTH_MODE=token and its token in the environment"
        ) from error


def _start_patiently(folder: Path | None, mark: str) -> None:
    """Ray gives its own processes 30 s, whatever the machine has to do; the second time what they
    read lies in memory."""
    try:
        _start(folder)
    except Exception as error:  # Ray raises nothing narrower
        if _TOO_SLOW not in str(error):
            raise
        logger.warning("Ray was not up within its 30 s; it is started once more")
        kill_marked(mark, folder)
        ray.shutdown()
        _start(folder)


def _start(folder: Path | None) -> None:
    stat = os.statvfs(_SHM) if _SHM.exists() else None
    # On Linux Ray takes the address of the way out, and nothing but this keeps it from that.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with _without_idle_helpers():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=object_store_bytes(
                    stat.f_bavail * stat.f_frsize if stat else 0
                ),
                runtime_env=_quoted_python(),
                _temp_dir=None if folder is None else str(folder),
            )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _without_idle_helpers() -> Iterator[None]:
    """Ray starts no process that a Ray of one run on one machine never asks anything of.

    The autoscaler's monitor has no nodes to add, the log monitor nobody to print to
    (`log_to_driver`), the API server no dashboard. Each is a Python process that imports Ray:
    together half of the CPU time of Ray's start. `ray.init` has no argument for it.
    """

    def no_api_server(node: Any, *_: Any, **__: Any) -> None:
        node._webui_url = None

    def nothing(*_: Any, **__: Any) -> None:
        pass

    replaced = {
        "start_monitor": nothing,
        "start_log_monitor": nothing,
        "start_api_server": no_api_server,
    }
    # A method that another version of Ray lacks is no method to replace: it starts what it starts.
    before = {name: getattr(Node, name) for name in replaced if hasattr(Node, name)}
    try:
        for name in before:
            setattr(Node, name, replaced[name])
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextmanager
def _nothing_left(folder: Path | None, mark: str) -> Iterator[None]:
    """A start that fails or is interrupted in the middle leaves no part of Ray."""
    try:
        yield
    except BaseException as error:
        kill_marked(mark, folder)
        if not isinstance(error, Exception):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WorkerError(
            f"Ray did not start on this machine: {said} `herl doctor` looks at memory and limits;"
            " a machine with too much to do is too slow for it"
        ) from error


@contextmanager
def _session_folder() -> Iterator[Path | None]:
    """Where Ray keeps sockets, logs and what it spills; gone after the block. None where the user
    names a place (`RAY_TMPDIR`), which keeps it."""
    if os.environ.get("RAY_TMPDIR"):
        yield None
        return
    parent = tempfile.gettempdir()
    folder = Path(
        tempfile.mkdtemp(
            prefix="herl-ray-", dir=parent if len(parent) <= _LONGEST_TMPDIR else "/tmp"
        )
    )
    try:
        yield folder
    finally:
        # Once more where a second Ctrl-C broke it off: else it is made up for as the interpreter
        # ends, which makes the folder anew.
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _quoted_python() -> dict[str, str]:
    """Ray starts workers through a shell and does not quote the interpreter's path."""
    return {"py_executable": shlex.quote(sys.executable)}


def _cancel_on_sigterm() -> None:
    """Let SIGTERM (a scheduler's notice) cancel the running task, so that workers end in order.

    Installed after `ray.init`, whose own handler would print a stack trace and abort. In another
    thread than the main one nobody hears signals; `blocking.run_blocking` cares for it there.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    task = asyncio.current_task()
    assert task is not None, "a Ray session is opened inside a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
