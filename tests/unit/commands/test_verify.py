"""What the proof of a conversion says of a good one and of each thing that can be wrong with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from herl_megatron.commands import verify as verify_conversion
from herl_megatron.megatron.convert.conversion import hf_to_megatron
from herl_megatron.megatron.convert.layout import TrainerLayout
from tests.distributed import tiny_models


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """Folder with `hf`, a tiny model, and `weights`, made from it for TP 2."""
    tiny_models.save("qwen2", tmp_path / "hf")
    hf_to_megatron(tmp_path / "hf", tmp_path / "weights", layout=TrainerLayout(tp=2))
    return tmp_path


def verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    paths = ["--hf", str(folder / "hf"), "--megatron", str(folder / "weights")]
    monkeypatch.setattr(sys, "argv", ["verify_conversion.py", *paths])
    return verify_conversion.main()


def test_a_good_conversion_passes_and_says_what_was_not_checked(
    converted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (converted / "manifest.json").write_text("{}")  # another program's, of no concern
    assert verify(converted, monkeypatch) == 0
    said = capsys.readouterr().out
    assert f"hashes of {converted}/hf: not checked: no manifest" in said
    assert f"hashes of {converted}/weights: as in the manifest of {converted}/weights" in said
    assert "config.json: equal" in said
    count = sum(len(load_file(file)) for file in (converted / "hf").glob("*.safetensors"))
    assert f"tensors: {count} of {count} equal bit for bit\n" in said


def test_one_bit_of_one_tensor_is_named(
    converted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sorted((converted / "hf").glob("*.safetensors"))[0]
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name].flatten().view(torch.uint8)[5] ^= 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert verify(converted, monkeypatch) == 1
    said = capsys.readouterr().out
    assert f"differs: {name}\n" in said and said.count("differs") == 1


def test_another_config_fails(
    converted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = converted / "hf" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"note": "edited"}))
    assert verify(converted, monkeypatch) == 1
    assert "config.json: differs from the one kept" in capsys.readouterr().out


def test_damage_ends_it_with_a_message(
    converted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((converted / "weights").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    assert verify(converted, monkeypatch) == 1
    assert f"{converted}/weights is damaged: {file.name} has" in capsys.readouterr().err
