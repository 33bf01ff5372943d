"""Start or join Ray, and leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray

from herl_megatron.cluster.orphans import orphan_guard
from herl_megatron.config.schema import ClusterConfig

_MIN_OBJECT_STORE_BYTES = 80 << 20  # Ray refuses less than about 75 MiB
_MAX_OBJECT_STORE_BYTES = 1 << 30
_PROBE_TIMEOUT_S = 5.0
_SHM = Path("/dev/shm")


def object_store_bytes(free_shm_bytes: int) -> int:
    """Size of a local Ray object store: a quarter of the free shared memory, 80 MiB to 1 GiB.

    Rows and log-probs pass through it; weights do not (they have their own buckets).
    """
    return max(_MIN_OBJECT_STORE_BYTES, min(_MAX_OBJECT_STORE_BYTES, free_shm_bytes // 4))


def check_address(config: ClusterConfig) -> None:
    """Refuse a `cluster.address` where nothing listens; Ray itself would try for minutes.

    Raises:
        ValueError: with the address and what to do.
    """
    address = config.address.removeprefix("ray://")
    if address in ("", "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cluster.address is {config.address!r}, but nothing answers there ({error}); give"
            " HOST:PORT of a running cluster (`ray start --head` prints it), or leave it empty to"
            " start Ray on this machine"
        ) from error


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Join `cluster.address`, or start a Ray on this machine that ends with the block.

    Actors ask for no logical CPUs, so a laptop with two cores can hold a whole run; what they
    really use is set by `cluster.threads_per_rank`.
    """
    # Ray hides accelerators from actors that ask for none and warns about a future change of it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as stack:
        stack.enter_context(orphan_guard())  # a joined Ray's processes end without it, files do not
        if config.address:
            _join(config.address)
        else:
            _start()
        stack.callback(ray.shutdown)
        _cancel_on_sigterm()
        yield


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


def _start() -> None:
    stat = os.statvfs(_SHM) if _SHM.exists() else None
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=object_store_bytes(stat.f_bavail * stat.f_frsize if stat else 0),
        runtime_env=_quoted_python(),
    )


def _quoted_python() -> dict[str, str]:
    """Ray starts workers through a shell and does not quote the interpreter's path."""
    return {"py_executable": shlex.quote(sys.executable)}


def _cancel_on_sigterm() -> None:
    """Let SIGTERM (a scheduler's notice) cancel the running task, so that workers end in order.

    Installed after `ray.init`, whose own handler would print a stack trace and abort.
    """
    task = asyncio.current_task()
    assert task is not None, "a Ray session is opened inside a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
