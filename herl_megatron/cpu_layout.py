"""How a small model's run is laid out on a CPU, and what of the CPU makes bf16 fast.

    python -m herl_megatron.cpu_layout      prints the settings for this machine, KEY=VALUE ...

A model that one core trains gains nothing from tensor parallelism: replicas do the same work
without a message per layer, and a thread per replica does not wait for others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_MOST_REPLICAS = 8  # a power of two: batches of small runs divide by it
_BYTES_PER_REPLICA = 13 << 29
"""A rank and an engine of 135M parameters at their peaks, measured: 4.2 and 1.9 GiB."""


def usable_cores() -> float:
    """Cores this process may use: its affinity, or less where the container has a quota."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def free_memory_bytes() -> int:
    """Memory that can still be used, page cache counted as free; less in a limited container."""
    lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if "MemAvailable" in lines:
        free = int(lines["MemAvailable"].split()[0]) << 10
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, max(int(limit) - int(used), 0))
    return free


def bf16_unit(flags: str | None = None) -> str:
    """`AMX` or `AVX-512` where the CPU multiplies bf16 matrices itself, else the empty string.

    flags: the CPU's, as in /proc/cpuinfo; None reads them.
    """
    if flags is None:
        lines = _read("/proc/cpuinfo").splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "")
    names = flags.split()
    return "AMX" if "amx_bf16" in names else "AVX-512" if "avx512_bf16" in names else ""


def small_model_layout(cores: float, memory_bytes: int) -> dict[str, int]:
    """Overrides by key: replicas of trainer and engine, which take turns, and threads of each."""
    most = min(_MOST_REPLICAS, int(cores), memory_bytes // _BYTES_PER_REPLICA)
    replicas = 1 << (max(1, most).bit_length() - 1)
    return {
        "megatron.tensor_parallel": 1,
        "megatron.data_parallel": replicas,
        "rollout.replicas": replicas,
        "cluster.threads_per_rank": max(1, int(cores) // replicas),
    }


def in_words(layout: dict[str, int]) -> str:
    """As overrides on a command line."""
    return " ".join(f"{key}={value}" for key, value in layout.items())


def _read(path: str) -> str:
    """The file's text, empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    layout = small_model_layout(usable_cores(), free_memory_bytes())
    sys.stdout.write(in_words(layout) + "\n")
