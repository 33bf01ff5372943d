"""The table of GPUs: found by torch's name, extended by a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from herl_megatron.gpus import GPUS, Gpu, find_gpu, read_gpus


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80"),
        ("NVIDIA H100 PCIe", "h100-pcie-80"),
        ("NVIDIA H100 NVL", "h100-nvl-94"),
        ("NVIDIA H200", "h200-141"),
        ("NVIDIA H200 NVL", "h200-nvl-141"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("A100-SXM4-40GB", "a100-40"),  # older drivers
        ("NVIDIA B200", "b200-180"),
        ("NVIDIA GB200", "gb200-186"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24"),
    ],
)
def test_a_gpu_is_found_by_torchs_name(device: str, name: str) -> None:
    found = find_gpu(device)
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    "device", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H1", "Tesla T4", "", "NVIDIA"]
)
def test_slices_and_strangers_are_not_taken_for_another(device: str) -> None:
    assert find_gpu(device) is None


def test_no_two_gpus_share_a_name_of_torchs() -> None:
    names = [device for gpu in GPUS.values() for device in gpu.devices]
    assert len(names) == len(set(names)) >= len(GPUS)


def test_a_file_adds_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(
        "mine: {memory_mib: 1024, capability: 10.3, bf16_tflops: 5, memory_gb_per_s: 7,"
        " devices: [NVIDIA Mine]}\n"
        "l4-24: {memory_mib: 2048, capability: '8.9', bf16_tflops: 6, memory_gb_per_s: 8}\n"
    )
    gpus = read_gpus(path)
    assert gpus["mine"] == Gpu("mine", 1 << 30, (10, 3), 5.0, 7.0, ("NVIDIA Mine",))
    assert find_gpu("nvidia mine", gpus) == gpus["mine"]
    assert gpus["l4-24"].memory_bytes == 2 << 30
    assert gpus["h100-80"] == GPUS["h100-80"] and "mine" not in GPUS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "must map names to GPUs, as in: my-gpu-64:"),
        ("", "must map names to GPUs"),
        ("a: [", "cannot be read"),
        ("a: 80", "a is 80; it must be as in"),
        ("a: {memory_mib: 1, bf16_tflops: 1}", "a has no memory_gb_per_s, capability;"),
        (
            "a: {memory_mib: 1, bf16_tflops: 1, memory_gb_per_s: 1, capability: 9.0, gb: 2}",
            "a has gb, which is no key; its keys are memory_mib",
        ),
        (
            "a: {memory_mib: -1, bf16_tflops: 1, memory_gb_per_s: 1, capability: 9.0}",
            "a.memory_mib is -1; it must be a number above 0",
        ),
        (
            "a: {memory_mib: 1, bf16_tflops: .nan, memory_gb_per_s: 1, capability: 9.0}",
            "a.bf16_tflops is nan",
        ),
        (
            "a: {memory_mib: 1, bf16_tflops: 1, memory_gb_per_s: 1, capability: sm_90}",
            "a.capability is 'sm_90'",
        ),
        (
            "a: {memory_mib: 1, bf16_tflops: 1, memory_gb_per_s: 1, capability: 9.0, devices: x}",
            "a.devices is 'x'",
        ),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "gpus.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)) as refused:
        read_gpus(path)
    assert said in str(refused.value)


def test_the_file_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "my_gpus.yaml"
    path.write_text(block)
    gpu = read_gpus(path)["my-gpu-64"]
    assert gpu.memory_bytes == 64 << 30 and gpu.capability == (9, 0)
    assert find_gpu("MY GPU 64GB", read_gpus(path)) == gpu


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: no such file"):
        read_gpus(tmp_path / "none.yaml")
