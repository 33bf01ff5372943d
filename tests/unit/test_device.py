"""Device decisions on a machine without CUDA, and what is measured on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from herl_megatron import device
from herl_megatron.device import Device


def test_auto_takes_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose_device("auto") == device.choose_device("cpu") == Device("cpu")
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        device.choose_device("cuda")


def test_backend_and_torch_device() -> None:
    assert (Device("cpu").backend, Device("cpu").torch) == ("gloo", torch.device("cpu"))
    assert (Device("cuda", 3).backend, Device("cuda", 3).torch) == ("nccl", torch.device("cuda:3"))


def test_precision_of_the_cpu() -> None:
    device.check_precision(Device("cpu"), precision="bf16", fp8=None)
    with pytest.raises(ValueError, match="megatron.fp8 is 'mxfp8' but the device is the CPU"):
        device.check_precision(Device("cpu"), precision="bf16", fp8="mxfp8")


@pytest.mark.parametrize(
    ("capability", "precision", "fp8", "message"),
    [
        ((7, 5), "bf16", None, r"compute capability \(7, 5\), bf16 needs \(8, 0\)"),
        ((8, 0), "bf16", "delayed", r"needs compute capability \(8, 9\)"),
        ((9, 0), "bf16", "mxfp8", r"needs compute capability \(10, 0\)"),
        ((9, 0), "bf16", "blockwise", None),
    ],
)
def test_precision_of_gpus(
    capability: tuple[int, int],
    precision: str,
    fp8: str | None,
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "transformer_engine_version", lambda: (2, 11))
    if message is None:
        device.check_precision(Device("cuda"), precision=precision, fp8=fp8)
    else:
        with pytest.raises(ValueError, match=message):
            device.check_precision(Device("cuda"), precision=precision, fp8=fp8)


@pytest.mark.parametrize(
    ("installed", "version"),
    [
        ({"transformer-engine": "2.11.0+c2a4f1"}, (2, 11)),
        ({"transformer-engine-torch": "2.9rc1"}, (2, 9)),
        ({}, None),
    ],
)
def test_transformer_engine_is_known_by_either_package(
    installed: dict[str, str], version: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(package: str) -> str:
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(metadata, "version", look_up)
    assert device.transformer_engine_version() == version


def test_host_copies_are_copies() -> None:
    tensor = torch.arange(3.0)
    host = device.copy_to_host(tensor)
    tensor.zero_()
    assert (host.tolist(), host.device) == ([0.0, 1.0, 2.0], torch.device("cpu"))
    device.release_cached_memory()  # nothing to do here, and nothing goes wrong


def test_memory_and_shared_memory(tmp_path: Path) -> None:
    free, total = device.memory_bytes(Device("cpu"))
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert total == int(meminfo["MemTotal"].split()[0]) * 1024
    assert 0 < free <= total
    before = device.shared_memory_free_bytes(str(tmp_path))
    assert 0 < before <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_seeds_repeat_numpy_and_torch() -> None:
    drawn = []
    for _ in range(2):
        device.seed_everything(11)
        drawn.append((np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_weights_stay_on_gpus_where_they_can() -> None:
    choose = device.choose_transport
    assert choose("auto", device="cuda", shares_gpus=True) == "cuda_ipc"
    assert choose("auto", device="cuda", shares_gpus=False) == "shared_memory"
    assert choose("auto", device="cpu", shares_gpus=True) == "shared_memory"
    assert choose("shared_memory", device="cuda", shares_gpus=True) == "shared_memory"
    with pytest.raises(ValueError, match="run is on the CPU; use 'auto'"):
        choose("cuda_ipc", device="cpu", shares_gpus=True)
    with pytest.raises(ValueError, match="needs a trainer rank on every GPU"):
        choose("cuda_ipc", device="cuda", shares_gpus=False)


_KEEPS = """
import psutil, torch
from herl_megatron.device import release_cached_memory
kept = torch.ones(1 << 22)  # 16 MiB; once freed, blocks of that size come from the heap
del kept
blocks = [torch.ones(1 << 21) for _ in range(64)]  # 8 MiB each
last = torch.ones(1 << 10)  # behind them: the heap cannot shrink from its end
before = psutil.Process().memory_info().rss
del blocks
release_cached_memory()
print((before - psutil.Process().memory_info().rss) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_the_host_goes_back_as_well() -> None:
    """Of 512 MiB that were freed all but some pages."""
    done = subprocess.run(
        [sys.executable, "-c", _KEEPS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 480
