"""The most memory that a process held, phase by phase."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil

TRAINER_PHASES = ("log-probs", "train step", "weight sync", "other")
"""What a trainer rank does; as `herl plan` calls them, but what is none of its phases: `other`."""
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"  # proc(5)


def peak_metric(where: Literal["host", "device"], phase: str) -> str:
    """Name of the metric with a trainer rank's peak in this phase."""
    return f"memory/trainer_{where}/{phase.replace('-', '_').replace(' ', '_')}_gib"


def take_peak_resident() -> int:
    """Bytes of RAM that this process held most since the last call; where the system does not say
    (it is not Linux, or forbids it), what it holds now."""
    try:
        found = _HIGH_WATER.search(_STATUS.read_text())
        _CLEAR.write_text(_RESET_HIGH_WATER)
    except OSError:
        found = None
    return int(found[1]) << 10 if found else int(psutil.Process().memory_info().rss)


def merge_peaks(ranks: Sequence[Mapping[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """By phase the most that any of the ranks held on the host, and on its device."""
    merged: dict[str, tuple[int, int]] = {}
    for peaks in ranks:
        for name, (host, device) in peaks.items():
            most_host, most_device = merged.get(name, (0, 0))
            merged[name] = max(most_host, host), max(most_device, device)
    return merged


class Peaks:
    """Host and device memory by phase since the last `take`.

    What happens outside of every phase counts as `other`.
    """

    def __init__(
        self, device_peak: Callable[[], int], host_peak: Callable[[], int] = take_peak_resident
    ) -> None:
        """Both give bytes held most since their own last call."""
        self._device_peak = device_peak
        self._host_peak = host_peak
        self._found: dict[str, tuple[int, int]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is held inside belongs to the phase `name`."""
        self._note("other")
        try:
            yield
        finally:
            self._note(name)

    def take(self) -> dict[str, tuple[int, int]]:
        """Bytes on host and device by phase, and begin anew."""
        self._note("other")
        found, self._found = self._found, {}
        return found

    def _note(self, name: str) -> None:
        host, device = self._found.get(name, (0, 0))
        self._found[name] = max(host, self._host_peak()), max(device, self._device_peak())
