"""Stopping at a step's end because somebody asks for it: a scheduler, before the time is up.

SIGTERM ends a run at once, and what came after the last checkpoint is computed again. SIGUSR1
leaves time: the step under way is finished and saved, whether or not a checkpoint is due.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.made = False

    def make(self) -> None:
        """Ask for it."""
        self.made = True
        logger.warning("asked to stop (SIGUSR1): after the step under way it is saved")


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A request that SIGUSR1 makes; outside of the block, and where this is not the main thread,
    the signal ends the process."""
    request, loop = StopRequest(), asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    loop.add_signal_handler(signal.SIGUSR1, request.make)
    try:
        yield request
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
