"""Whether Ray's own processes are there. Without its GCS every process of a run, the driver too, is
aborted after a minute without a word; without a node's raylet nothing on that node goes on. So both
are looked at once a second, and the run's task is cancelled while it can still end in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import ray

from herl_megatron.cluster.health import WorkerError

logger = logging.getLogger(__name__)

_PERIOD_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
_REFUSED_S = 2.0
_REFUSED_ELSEWHERE_S = 10.0  # who runs a cluster may start its GCS anew
_UNREACHABLE_S = 25.0  # a network that hangs may come back, but Ray gives up after 60 s
_RANKS_STAY = frozenset({"gcs_server"})
"""Without it the ranks still do what they are asked, for a minute."""


class RayLost(WorkerError):
    """A process of Ray's that a run cannot do without is gone."""


@dataclass
class RayPart:
    """A process of Ray's: its program, where it listens, and for how long it has not answered."""

    name: str
    host: str
    port: int
    _silent_since: float | None = field(default=None, init=False)

    async def look(self, *, refused_s: float) -> str:
        """Connect once; why it counts as gone, "" while it does not."""
        try:
            connecting = asyncio.open_connection(self.host, self.port)
            _, writer = await asyncio.wait_for(connecting, _CONNECT_TIMEOUT_S)
        except OSError as error:  # a TimeoutError is one
            now = time.monotonic()
            self._silent_since = now if self._silent_since is None else self._silent_since
            refused = isinstance(error, ConnectionRefusedError)
            if now - self._silent_since < (refused_s if refused else _UNREACHABLE_S):
                return ""
            what = "died" if refused else f"cannot be reached ({error or 'no answer'})"
            return (
                f"Ray's {self.name} at {self.host}:{self.port} {what}; the run cannot go on without"
                " it. What ends it is mostly the kernel, for want of memory (`dmesg`), or a"
                " `ray stop`"
            )
        self._silent_since = None
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return ""


class RayWatch:
    """Looks at the parts until one is gone, and then cancels the task that made it.

    Attributes:
        lost: what is gone, "" while all are there.
        ranks_stay: whether the run's workers still answer.
    """

    def __init__(self, parts: Sequence[RayPart], *, own: bool) -> None:
        """own: of a Ray that this process started, which nobody else starts anew."""
        self.lost = ""
        self.ranks_stay = True
        self._parts = parts
        self._refused_s = _REFUSED_S if own else _REFUSED_ELSEWHERE_S
        task = asyncio.current_task()
        assert task is not None, "a Ray session is opened inside a task"
        self._run = task
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while not self.lost:
            await asyncio.sleep(_PERIOD_S)
            for part in self._parts:
                if problem := await part.look(refused_s=self._refused_s):
                    self.lost, self.ranks_stay = problem, part.name in _RANKS_STAY
                    logger.error("%s", problem)  # at once: Ray may abort this process
                    self._run.cancel()
                    return

    def raise_instead_of(self, error: BaseException) -> None:
        """RayLost instead of the cancellation, or of what a worker's loss came to elsewhere."""
        if not self.lost:
            return
        if isinstance(error, asyncio.CancelledError):
            self._run.uncancel()
        raise RayLost(self.lost) from error

    def stop(self) -> None:
        """Look no more."""
        self._watching.cancel()


def parts_of_ray() -> list[RayPart]:
    """The GCS and this node's raylet of the Ray that this process has joined."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    here = ray.get_runtime_context().get_node_id()
    parts = [RayPart("gcs_server", host.strip("[]"), int(port))]
    for node in ray.nodes():
        if node["NodeID"] == here:
            parts.append(RayPart("raylet", node["NodeManagerAddress"], node["NodeManagerPort"]))
    return parts
