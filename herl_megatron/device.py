"""The one place that decides between CPU and CUDA.

Which device a process uses, which torch.distributed backend goes with it, what precision it can
compute in, how much memory it has and how it is seeded. Everything else takes a `Device`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch

from herl_megatron import fp8 as fp8_rules
from herl_megatron.types import DeviceKind

RequestedDevice = Literal["auto", "cpu", "cuda"]
Transport = Literal["shared_memory", "cuda_ipc"]

_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Device:
    """A process's compute device; `index` is the CUDA device number, 0 on CPU."""

    kind: DeviceKind
    index: int = 0

    @property
    def torch(self) -> torch.device:
        """The torch device that tensors are made on."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device("cuda", self.index)

    @property
    def backend(self) -> Literal["gloo", "nccl"]:
        """The torch.distributed backend for tensors on this device."""
        return "gloo" if self.kind == "cpu" else "nccl"


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def torch_build() -> str:
    """What torch was built for: "cu130", "rocm7.1", or empty for the CPU alone."""
    if torch.version.cuda:
        return "cu" + torch.version.cuda.replace(".", "")
    return f"rocm{torch.version.hip}" if torch.version.hip else ""


def cuda_device_count() -> int:
    """CUDA devices that torch sees; 0 without CUDA."""
    return torch.cuda.device_count()


@dataclass(frozen=True)
class LocalGpu:
    """What a CUDA device is: name, compute capability, memory, and the FP8 recipes it can run."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    fp8: tuple[str, ...]
    bf16: bool


def list_gpus() -> tuple[LocalGpu, ...]:
    """Every CUDA device that torch sees."""
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = (facts.major, facts.minor)
        recipes = fp8_rules.available(capability=capability, cuda=_cuda_version())
        found.append(
            LocalGpu(
                facts.name, capability, facts.total_memory, recipes, capability >= _BF16_CAPABILITY
            )
        )
    return tuple(found)


def gpu_counts() -> dict[str, int]:
    """How many GPUs of each name this process sees."""
    return dict(Counter(gpu.name for gpu in list_gpus()))


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed (it is not imported here)."""
    return importlib.util.find_spec("transformer_engine") is not None


def transformer_engine_version() -> tuple[int, int] | None:
    """Its (major, minor), None where it is not installed."""
    # Without the package that only names the others, the one with the Python code is left.
    for package in ("transformer-engine", "transformer-engine-torch"):
        try:
            return _major_minor(metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return None


def _cuda_version() -> tuple[int, int]:
    """What torch is built for; (0, 0) without CUDA."""
    return _major_minor(torch.version.cuda or "0.0")


def _major_minor(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    assert found, f"version {version!r} has no major and minor number"
    return int(found[1]), int(found[2])


def choose_kind(requested: RequestedDevice) -> DeviceKind:
    """What a run computes on. For the driver, which computes nothing: unlike `choose_device` it
    takes no memory of a GPU (its context would take hundreds of MB).

    Raises:
        ValueError: `cuda` was asked for and there is none.
    """
    if requested == "cpu" or (requested == "auto" and not has_cuda()):
        return "cpu"
    if not has_cuda():
        raise ValueError("cluster.device is 'cuda' but torch sees no CUDA device; use 'cpu'")
    return "cuda"


def choose_device(requested: RequestedDevice, *, local_rank: int = 0) -> Device:
    """The device of a process and, on CUDA, make it torch's current one.

    Raises:
        ValueError: `cuda` was asked for and there is none, or fewer than `local_rank` needs.
    """
    if choose_kind(requested) == "cpu":
        return Device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} needs CUDA device {local_rank} but this machine has"
            f" {torch.cuda.device_count()}; start fewer ranks per machine"
        )
    torch.cuda.set_device(local_rank)
    return Device("cuda", local_rank)


def choose_transport(
    requested: Literal["auto", "shared_memory", "cuda_ipc"],
    *,
    device: DeviceKind,
    shares_gpus: bool,
) -> Transport:
    """How weights reach the engines (`weight_sync.transport`).

    shares_gpus: whether every GPU of an engine has a trainer rank.

    Raises:
        ValueError: `cuda_ipc` without GPUs, or where an engine's GPU has no trainer rank.
    """
    if requested == "cuda_ipc" and device == "cpu":
        raise ValueError(
            "weight_sync.transport is 'cuda_ipc', which passes GPU memory from process to process,"
            " but the run is on the CPU; use 'auto' or 'shared_memory'"
        )
    if requested == "cuda_ipc" and not shares_gpus:
        raise ValueError(
            "weight_sync.transport is 'cuda_ipc', which needs a trainer rank on every GPU of the"
            " engines, but some have none: use 'auto' or 'shared_memory', or make"
            " rollout.replicas * rollout.tensor_parallel at most the trainer's GPUs"
        )
    if requested == "auto":
        return "cuda_ipc" if device == "cuda" and shares_gpus else "shared_memory"
    return requested


def check_precision(device: Device, *, precision: str, fp8: str | None) -> None:
    """Refuse a precision that this device or installation cannot compute in.

    Raises:
        ValueError: FP8 on CPU, or where the GPU, its CUDA or Transformer Engine lacks the recipe
            (`fp8`); bf16 on a GPU without it.
    """
    if device.kind == "cpu":
        if fp8 is not None:
            raise ValueError(
                f"megatron.fp8 is {fp8!r} but the device is the CPU; FP8 needs a CUDA GPU and"
                " Transformer Engine: set megatron.fp8 to null"
            )
        return
    capability = torch.cuda.get_device_capability(device.index)
    if precision == "bf16" and capability < _BF16_CAPABILITY:
        raise ValueError(
            f"megatron.precision is 'bf16' but {torch.cuda.get_device_name(device.index)} has"
            f" compute capability {capability}, bf16 needs {_BF16_CAPABILITY}: use 'fp32'"
        )
    if fp8 is not None:
        problem = fp8_rules.unsupported(
            fp8,
            gpu=torch.cuda.get_device_name(device.index),
            capability=capability,
            cuda=_cuda_version(),
            engine=transformer_engine_version(),
        )
        if problem:
            raise ValueError(problem)


def memory_bytes(device: Device) -> tuple[int, int]:
    """(free, total) memory of the device in bytes; on CPU the machine's physical memory."""
    if device.kind == "cuda":
        free, total = torch.cuda.mem_get_info(device.index)
        return free, total
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return (
        os.sysconf("SC_AVPHYS_PAGES") * page_bytes,
        os.sysconf("SC_PHYS_PAGES") * page_bytes,
    )


def device_name(device: Device) -> str:
    """What torch calls the GPU, as in "NVIDIA H100 80GB HBM3"; empty on the CPU."""
    return "" if device.kind == "cpu" else torch.cuda.get_device_name(device.index)


def take_peak_memory() -> int:
    """Bytes that torch held most on this process's GPU since the last call; 0 on the CPU."""
    if not has_cuda():
        return 0
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def release_cached_memory() -> None:
    """Give back what an allocator keeps but does not use: to the GPU, or to the machine (glibc).

    For another process there (a colocated engine that wakes up). On the CPU a rank of a model of
    135M parameters kept 4 GiB behind a training step, between which none of them was in use.
    """
    if has_cuda():
        torch.cuda.empty_cache()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def gpu_uuid(device: torch.device) -> str:
    """The GPU's identity, the same in every process, whatever number it has there."""
    return str(torch.cuda.get_device_properties(device).uuid)


def finish_work(device: torch.device) -> None:
    """Wait until what was started on the device, on any stream, is done; at once on CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory, page-locked where there is a GPU to copy from and to."""
    host = torch.empty_like(tensor, device="cpu", pin_memory=has_cuda())
    return host.copy_(tensor)


@dataclass(frozen=True)
class StreamMark:
    """A point in the GPU work that a thread has queued so far."""

    event: Any


def mark_work() -> StreamMark | None:
    """Where this thread's current stream stands; None on the CPU, where nothing is queued."""
    if not has_cuda():
        return None
    event = torch.cuda.Event()
    event.record()
    return StreamMark(event)


@contextmanager
def beside(mark: StreamMark) -> Iterator[None]:
    """What is queued inside runs on a stream of its own, after `mark` and beside later work; it is
    done when the block ends, and only the calling thread has waited for it."""
    stream = torch.cuda.Stream(mark.event.device)
    stream.wait_event(mark.event)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def page_lock(address: int, num_bytes: int) -> None:
    """Keep host memory in place, so that a GPU copies to it at full speed and asynchronously; on
    the CPU nothing. `torch.empty(pin_memory=True)` would round the size up to a power of two.

    Raises:
        RuntimeError: CUDA refuses (a limit on locked memory).
    """
    if has_cuda():
        runtime = torch.cuda.cudart()
        torch.cuda.check_error(int(runtime.cudaHostRegister(address, num_bytes, 1)))  # portable


def page_unlock(address: int) -> None:
    """Undo `page_lock`, before the memory is given back."""
    if has_cuda():
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(address)))


def shared_memory_free_bytes(folder: str = "/dev/shm") -> int:
    """Bytes that can still be written to the shared-memory file system at `folder`."""
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def scratch_bytes(device: torch.device) -> int:
    """How much memory a loop over chunks should touch at a time on this device.

    On CPU a chunk should stay in the cache (measured for log-probs: 4 MiB is 3.6 times as fast as
    32 MiB or more); a GPU wants chunks that keep it busy for longer than a kernel's launch.
    """
    return 4 << 20 if device.type == "cpu" else 256 << 20


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device) of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """State of every generator that `seed_everything` seeds, as tensors and plain values."""
    numpy_state: Any = np.random.get_state(legacy=True)
    _, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if has_cuda() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue every generator from what `get_rng_state` returned."""
    random.setstate(state["python"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and has_cuda():
        torch.cuda.set_rng_state(state["cuda"])
