"""Who changes weights or optimizer state waits while a checkpoint still copies them.

Between two optimizer steps nothing changes them, so a save may copy them beside the rollouts, the
log-prob passes, forward and backward. Each place that writes to them waits first:

    gate.wait()          # Optimizer.step, Optimizer.set_main_weight, HostWeights, load_checkpoint
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch


class WriteGate:
    """Closed while a copy is under way.

    Attributes:
        waited_s: how long writers have waited so far.
    """

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._is_open.set()
        self.waited_s = 0.0

    def close(self) -> None:
        """A copy begins; by the thread that also writes."""
        assert self._is_open.is_set(), "a copy is under way already"
        self._is_open.clear()

    def open(self) -> None:
        """The copy has ended, or failed."""
        self._is_open.set()

    def wait(self) -> None:
        """Return when nothing is being copied."""
        if not self._is_open.is_set():
            start = time.perf_counter()
            self._is_open.wait()
            self.waited_s += time.perf_counter() - start


class Unchanged:
    """Tells whether tensors were written to meanwhile: a second look at what the gate holds back.

    torch counts the in-place changes of a tensor, but not those made through `.data` nor by the
    kernels of other libraries, so a change that is found is certain and one may be missed.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._versions = [tensor._version for tensor in self._tensors]

    def check(self) -> None:
        """Raises AssertionError if one has changed since."""
        now = [tensor._version for tensor in self._tensors]
        changed = sum(a != b for a, b in zip(now, self._versions, strict=True))
        assert not changed, (
            f"{changed} tensors changed while a checkpoint copied them: something writes to weights"
            " or optimizer state without WriteGate.wait()"
        )
