"""Conversion without ranks: every bit comes back, and every fault of the input has its message.

Megatron's own loader reads what is written here in `tests/distributed/test_convert.py`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from herl_megatron.files.manifest import damage
from herl_megatron.megatron.convert.conversion import Files, hf_to_megatron, megatron_to_hf
from herl_megatron.megatron.convert.layout import TrainerLayout
from tests.distributed import tiny_models
from tests.limits import HANG_S

ROOT = Path(__file__).parents[4]
LAYOUTS = {
    "qwen2": TrainerLayout(tp=2, pp=2, vpp=2),
    "qwen2_tied": TrainerLayout(tp=4),
    "qwen3": TrainerLayout(tp=2, pp=3),
    "llama_tied": TrainerLayout(pp=2),
    "glm4": TrainerLayout(tp=2, pp=2),
    "gemma3_text": TrainerLayout(tp=2, pp=3),
    "mistral": TrainerLayout(tp=4, pp=2),
    "qwen3_moe": TrainerLayout(tp=2, ep=4, pp=2, etp=1),
}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Names, dtypes and bits."""
    return found.keys() == wanted.keys() and all(
        found[name].dtype is tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in wanted.items()
    )


def save(name: str, folder: Path) -> Path:
    """A tiny model with a tokenizer file, in four shards."""
    tiny_models.save(name, folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return save("qwen2", tmp_path / "hf")


def refuse(expected: str, hf: Path, layout: TrainerLayout | None = None, **more: Any) -> None:
    """The conversion is refused with these words and leaves nothing behind."""
    out = hf.parent / "out"
    with pytest.raises(ValueError, match=expected):
        hf_to_megatron(hf, out, layout=layout or TrainerLayout(), **more)
    assert [path.name for path in hf.parent.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_bit_comes_back(name: str, tmp_path: Path) -> None:
    """Through one layout, then through another one, in several files per rank and shard."""
    hf = save(name, tmp_path / "hf")
    wanted = tensors(hf)
    hf_to_megatron(hf, tmp_path / "a", layout=LAYOUTS[name], files=Files(file_bytes=50_000))
    hf_to_megatron(hf, tmp_path / "b", layout=TrainerLayout(tp=2), weights=tmp_path / "a")
    for source in ("a", "b"):
        out = tmp_path / f"hf_{source}"
        megatron_to_hf(tmp_path / source, out, shard_bytes=100_000)
        assert same(tensors(out), wanted)
        assert len(list(out.glob("*.safetensors"))) > 3
        assert (out / "tokenizer.json").read_text() == '{"version": "1.0"}'
        assert damage(out) is None and damage(tmp_path / source) is None
        index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        assert index.keys() == wanted.keys()
        for file in set(index.values()):
            assert load_file(out / file).keys() == {n for n, f in index.items() if f == file}


def test_records_have_no_checksums_of_their_own(hf: Path, tmp_path: Path) -> None:
    """They take as long as the writing; torch keeps the switch by thread, and threads write."""
    hf_to_megatron(hf, tmp_path / "out", layout=TrainerLayout(), files=Files(threads=2))
    index = pickle.loads((tmp_path / "out" / ".metadata").read_bytes())
    summed = []
    for record in index.storage_data.values():
        raw = (tmp_path / "out" / record.relative_path).read_bytes()
        window = io.BytesIO(raw[record.offset : record.offset + record.length])
        with zipfile.ZipFile(window) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data/0"))
            info = archive.getinfo(name)
            start = record.offset + info.header_offset
            name_bytes, more = struct.unpack("<HH", raw[start + 26 : start + 30])
            first = start + 30 + name_bytes + more
            data = raw[first : first + info.file_size]
            assert info.compress_type == zipfile.ZIP_STORED and len(data) == info.file_size
            summed.append(zlib.crc32(data) == info.CRC)
    assert len(summed) > 10 and not any(summed)


def test_dtype_rounds_to_nearest_even(hf: Path, tmp_path: Path) -> None:
    """bf16 is the upper half of an fp32's bits: round on the lower half, ties to even."""
    hf_to_megatron(hf, tmp_path / "out", layout=TrainerLayout(), dtype=torch.bfloat16)
    megatron_to_hf(tmp_path / "out", tmp_path / "back")
    found = tensors(tmp_path / "back")
    for name, tensor in tensors(hf).items():
        bits = tensor.numpy().view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        assert found[name].dtype is torch.bfloat16
        assert np.array_equal(found[name].view(torch.int16).numpy().view(np.uint16), rounded)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"


def change(hf: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace a tensor, remove it (None) or add one."""
    index = json.loads((hf / "model.safetensors.index.json").read_text())
    file = hf / index["weight_map"].setdefault(name, "model-00001-of-00004.safetensors")
    content = {key: value.clone() for key, value in load_file(file).items()}  # views of the file
    content.pop(name, None)
    del index["weight_map"][name]
    if tensor is not None:
        content[name] = tensor
        index["weight_map"][name] = file.name
    save_file(content, file)
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def test_faults_of_the_input(hf: Path, tmp_path: Path) -> None:
    wanted = tensors(hf)
    shard = next(iter(sorted(hf.glob("model-00002*"))))
    change(hf, K_PROJ, None)
    refuse(f"1 tensors are missing: {K_PROJ}", hf)
    change(hf, K_PROJ, torch.zeros(8, 64))
    refuse(rf"{K_PROJ} has shape \(8, 64\) but config.json asks for \(32, 64\)", hf)
    change(hf, K_PROJ, wanted[K_PROJ].to(torch.int8))
    refuse(f"{K_PROJ} is stored in I8; only F32, BF16, F16", hf)
    change(hf, K_PROJ, wanted[K_PROJ].bfloat16())
    refuse("k_proj.weight in BF16.*one Megatron parameter.*--dtype", hf)
    change(hf, K_PROJ, wanted[K_PROJ])
    change(hf, "model.layers.1.extra.weight", torch.zeros(2))
    refuse("1 tensors do not belong to a qwen2 model.*: model.layers.1.extra.weight", hf)
    change(hf, "model.layers.1.extra.weight", None)
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    refuse(f"{shard.name} .* is truncated or no safetensors file", hf)
    shard.unlink()
    refuse(f"names {shard.name}, which is not there", hf)
    shard.write_bytes(content)
    index = hf / "model.safetensors.index.json"
    listed = index.read_text()
    unusable = {
        listed[:-9]: "is not valid JSON: ",
        "{}": "cannot be read .*weight_map",
        "[]": "holds \\[\\], not an object",
    }
    for broken, reason in unusable.items():
        index.write_text(broken)
        refuse(f"{index} {reason}.*; download or copy it again", hf)
    index.write_text(listed)
    refuse("num_attention_heads 4 is not divisible by tp 3", hf, TrainerLayout(tp=3))
    refuse("ep is 2 but a qwen2 model has no experts", hf, TrainerLayout(ep=2))
    refuse("etp is 1 but a qwen2 model has no experts", hf, TrainerLayout(etp=1))
    refuse("is no Megatron checkpoint", hf, weights=hf)
    hf_to_megatron(hf, tmp_path / "out", layout=TrainerLayout())
    with pytest.raises(ValueError, match="out exists"):
        hf_to_megatron(hf, tmp_path / "out", layout=TrainerLayout())


def test_damaged_checkpoint_is_refused(hf: Path, tmp_path: Path) -> None:
    """A flipped bit by the manifest; a truncated file also without hashes; another model's."""
    out = tmp_path / "out"
    hf_to_megatron(hf, out, layout=TrainerLayout(tp=2))
    file = max(out.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())

    def refuse_back(expected: str, source: Path = out, **more: Any) -> None:
        with pytest.raises(ValueError, match=expected):
            megatron_to_hf(source, tmp_path / "back", **more)
        assert not (tmp_path / "back").exists()

    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refuse_back(f"damaged: {file.name} has other content")
    file.write_bytes(content[:-1000])
    refuse_back(f"{file.name} has {len(content) - 1000} bytes instead of {len(content)}")
    refuse_back("is truncated or damaged: no tensor at byte", check_hashes=False)
    file.unlink()
    refuse_back(f"{file.name} is missing", check_hashes=False)
    for name, expected in (
        ("qwen2_tied", "has no tensor output_layer.weight; it is of another model"),
        (
            "qwen3",
            r"linear_qkv.weight has shape \(4, 256, 64\), but config.json asks for \(4, 128, 64",
        ),
    ):
        hf_to_megatron(save(name, tmp_path / name), tmp_path / "theirs", layout=TrainerLayout())
        with pytest.raises(ValueError, match=expected):
            megatron_to_hf(tmp_path / "theirs", tmp_path / "back", hf=hf)
        shutil.rmtree(tmp_path / "theirs")


def test_full_disk(hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the start, by what is free."""
    usage = shutil.disk_usage(hf)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refuse("its disk has 1048576 free; free [0-9]+ bytes or write to another disk", hf)


def tool(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    started: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, *map(str, arguments)], text=True, stderr=subprocess.PIPE, **options
    )
    return started


def test_write_that_fails_and_conversion_that_is_killed(hf: Path, tmp_path: Path) -> None:
    """A limit on file sizes fails a write halfway; SIGKILL leaves a folder that the next start
    removes. Nothing is published in either case."""
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"sys.path.insert(0, {str(ROOT)!r});"
        "from herl_megatron.commands import to_megatron as tool;"
        "raise SystemExit(tool.main())"
    )
    out = tmp_path / "out"
    process = tool("-c", limited, "--hf", hf, "--out", out)
    assert process.stderr is not None
    errors = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == 1 and "could not be written" in errors, errors
    assert not out.exists() and not (tmp_path / ".out.partial").exists()

    waiting = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r});"
        "from herl_megatron.megatron.convert import conversion;"
        "conversion.write_manifest = lambda *a, **k: time.sleep(60);"
        "from herl_megatron.commands import to_megatron as tool; tool.main()"
    )
    process = tool("-c", waiting, "--hf", hf, "--out", out)
    end = time.monotonic() + 60
    while not (tmp_path / ".out.partial" / "hf").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists() and (tmp_path / ".out.partial").exists()
    hf_to_megatron(hf, out, layout=TrainerLayout())
    assert damage(out) is None and not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_none_are_not_exported(hf: Path, tmp_path: Path, value: float) -> None:
    """The last value of a tensor in the middle; a checkpoint of them may be looked at, not used."""
    name = "model.layers.1.mlp.down_proj.weight"
    weights = tensors(hf)[name]
    weights.view(-1)[-1] = value
    change(hf, name, weights)
    hf_to_megatron(hf, tmp_path / "out", layout=TrainerLayout(tp=2))
    with pytest.raises(ValueError, match=f"{name} .*linear_fc2.weight. holds NaN or infinity"):
        megatron_to_hf(tmp_path / "out", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]
