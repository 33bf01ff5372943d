"""What GPUs are: memory, compute capability, dense bf16 peak, memory bandwidth.

Memory is what `nvidia-smi` reports as total; peaks and bandwidths are the vendor's data sheets,
dense (without sparsity) and with fp32 accumulation. Nothing here was measured by this project.
`herl plan` plans for them, a run's metrics take the peak for MFU. A GPU that is not in the table
comes from a YAML file of the user's (`read_gpus`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from herl_megatron.files.os_errors import absent


@dataclass(frozen=True)
class Gpu:
    """A GPU: total memory, CUDA's compute capability, dense bf16 peak and memory bandwidth.

    devices: the names that torch (and `nvidia-smi`) give it, without "NVIDIA".
    """

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    bf16_tflops: float
    memory_gb_per_s: float
    devices: tuple[str, ...] = ()


_HOPPER, _AMPERE, _ADA = (9, 0), (8, 0), (8, 9)

GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100-80", 81559 << 20, _HOPPER, 989, 3350, ("H100 80GB HBM3",)),
        Gpu("h100-pcie-80", 81559 << 20, _HOPPER, 756, 2039, ("H100 PCIe",)),
        Gpu("h100-nvl-94", 95830 << 20, _HOPPER, 835, 3938, ("H100 NVL",)),
        Gpu("h200-141", 143771 << 20, _HOPPER, 989, 4800, ("H200",)),
        Gpu("h200-nvl-141", 143771 << 20, _HOPPER, 835, 4800, ("H200 NVL",)),
        Gpu("h800-80", 81559 << 20, _HOPPER, 989, 3350, ("H800",)),
        Gpu("h20-96", 97871 << 20, _HOPPER, 148, 4000, ("H20",)),
        Gpu("a100-80", 81920 << 20, _AMPERE, 312, 2039, ("A100-SXM4-80GB",)),
        Gpu("a100-pcie-80", 81920 << 20, _AMPERE, 312, 1935, ("A100 80GB PCIe",)),
        Gpu("a100-40", 40960 << 20, _AMPERE, 312, 1555, ("A100-SXM4-40GB", "A100-PCIE-40GB")),
        Gpu("a800-80", 81920 << 20, _AMPERE, 312, 2039, ("A800-SXM4-80GB",)),
        Gpu("a800-pcie-80", 81920 << 20, _AMPERE, 312, 1935, ("A800 80GB PCIe",)),
        Gpu("b200-180", 183359 << 20, (10, 0), 2250, 8000, ("B200",)),
        Gpu("b300-270", 275040 << 20, (10, 3), 2250, 8000, ("B300 SXM6 AC",)),
        Gpu("gb200-186", 189471 << 20, (10, 0), 2500, 8000, ("GB200",)),
        Gpu("l40s-48", 46068 << 20, _ADA, 362, 864, ("L40S",)),
        Gpu("l4-24", 23034 << 20, _ADA, 121, 300, ("L4",)),
        Gpu("a10-24", 23028 << 20, (8, 6), 125, 600, ("A10",)),
        Gpu("a40-48", 46068 << 20, (8, 6), 149.7, 696, ("A40",)),
        Gpu("a6000-48", 49140 << 20, (8, 6), 154.8, 768, ("RTX A6000",)),
        Gpu("6000ada-48", 49140 << 20, _ADA, 364.2, 960, ("RTX 6000 Ada Generation",)),
        Gpu("rtx3090-24", 24576 << 20, (8, 6), 71, 936, ("GeForce RTX 3090",)),
        Gpu("rtx4090-24", 24564 << 20, _ADA, 165.2, 1008, ("GeForce RTX 4090",)),
        Gpu("rtx5090-32", 32607 << 20, (12, 0), 209.5, 1792, ("GeForce RTX 5090",)),
    )
}

_NUMBERS = ("memory_mib", "bf16_tflops", "memory_gb_per_s")
_KEYS = (*_NUMBERS, "capability", "devices")
_EXAMPLE = (
    "my-gpu-64: {memory_mib: 65536, capability: '9.0', bf16_tflops: 800, memory_gb_per_s: 3000,"
    " devices: [MY GPU 64GB]}"
)


def find_gpu(device_name: str, gpus: Mapping[str, Gpu] = GPUS) -> Gpu | None:
    """The GPU that torch calls `device_name`, as in "NVIDIA H100 80GB HBM3"; None for one that is
    in no table. A slice of a GPU (MIG) has another name and another peak, so it is none of these.
    """
    wanted = _plain(device_name)
    return next((gpu for gpu in gpus.values() if wanted in map(_plain, gpu.devices)), None)


def _plain(device_name: str) -> str:
    return " ".join(device_name.casefold().removeprefix("nvidia").split())


def read_gpus(path: Path) -> dict[str, Gpu]:
    """The table with the GPUs of a YAML file, which may also replace entries of it.

    The file maps a name to `memory_mib` (as `nvidia-smi` says), `capability` ("9.0"), `bf16_tflops`
    (dense), `memory_gb_per_s` and, if it likes, `devices` (torch's names).

    Raises:
        ValueError: the file cannot be read; a key is missing, unknown, or no such value.
    """
    if problem := absent(path, "file"):  # a pipe would be waited for
        raise ValueError(f"GPUs {path}: {problem}; name a YAML file with GPUs as in: {_EXAMPLE}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"GPUs {path} cannot be read: {said}; give GPUs as in: {_EXAMPLE}"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"GPUs {path} must map names to GPUs, as in: {_EXAMPLE}")
    return {**GPUS, **{str(name): _read(str(name), facts, path) for name, facts in content.items()}}


def _read(name: str, facts: Any, path: Path) -> Gpu:
    where = f"GPUs {path}: {name}"
    if not isinstance(facts, dict):
        raise ValueError(f"{where} is {facts!r}; it must be as in: {_EXAMPLE}")
    unknown = sorted(str(key) for key in facts if key not in _KEYS)
    missing = [key for key in (*_NUMBERS, "capability") if key not in facts]
    if unknown or missing:
        said = [f"has no {', '.join(missing)}"] if missing else []
        said += [f"has {', '.join(unknown)}, which is no key"] if unknown else []
        raise ValueError(f"{where} {' and '.join(said)}; its keys are {', '.join(_KEYS)}")
    memory, tflops, bandwidth = (_positive(facts[key], f"{where}.{key}") for key in _NUMBERS)
    version = re.fullmatch(r"(\d+)\.(\d+)", str(facts["capability"]))
    if version is None:
        raise ValueError(
            f"{where}.capability is {facts['capability']!r}; it must be CUDA's compute capability,"
            " such as '9.0'"
        )
    devices = facts.get("devices", [])
    if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
        raise ValueError(
            f"{where}.devices is {devices!r}; it must be a list of names, such as"
            " [NVIDIA H100 80GB HBM3]"
        )
    capability = int(version[1]), int(version[2])
    return Gpu(name, int(memory * (1 << 20)), capability, tflops, bandwidth, tuple(devices))


def _positive(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{where} is {value!r}; it must be a number above 0")
    return float(value)
