"""Publish a Hugging Face folder whose weights were written shard by shard, by many processes.

    staging = start_export(folder)                  # an empty folder beside the final one
    ... every owning rank writes its shards there and tells what it wrote ...
    finish_export(staging, folder, stages=written, source=original_folder)

The index is built from what lies in the staging folder, config and tokenizer files are copied from
the source, and one rename makes the folder appear complete or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from herl_megatron.data.serving import ServingFacts, read_serving_facts, write_serving_facts
from herl_megatron.files.run_files import EXPORT_FILE, MANIFEST, TEMPLATES

_INDEX = "model.safetensors.index.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")


@dataclass(frozen=True)
class WrittenShards:
    """What one rank wrote: file names in the staging folder, and how many there are in all."""

    files: tuple[str, ...]
    total_files: int
    dtype: str
    """Torch dtype name of the weights, e.g. `bfloat16`."""


def start_export(folder: Path) -> Path:
    """An empty staging folder beside `folder`.

    Raises:
        ValueError: `folder` exists already.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; export to a new folder, or remove it first")
    staging = folder.with_name(f".{folder.name}.partial")
    if staging.exists():
        shutil.rmtree(staging)  # left by an export that was killed
    staging.mkdir(parents=True)
    return staging


def finish_export(
    staging: Path, folder: Path, *, stages: Sequence[WrittenShards], source: Path
) -> None:
    """`complete_export`, then rename `staging` to `folder`."""
    facts = read_serving_facts(source)
    complete_export(staging, stages=stages, source=source, serving=facts)
    os.rename(staging, folder)


def complete_export(
    staging: Path,
    *,
    stages: Sequence[WrittenShards],
    source: Path,
    serving: ServingFacts | None,
) -> None:
    """Write index, config and tokenizer files beside the shards, and what a server has to know
    (`read_serving_facts` of `source`).

    Raises:
        ValueError: shards are missing, or a tensor was written twice.
    """
    files = sorted(name for stage in stages for name in stage.files)
    if not stages or len(files) != stages[0].total_files:
        expected = stages[0].total_files if stages else "at least 1"
        raise ValueError(f"{staging}: {len(files)} weight files were written, not {expected}")
    _write_index(staging, files)
    copy_other_files(source, staging)
    config = json.loads((source / "config.json").read_text())
    config = _with_dtype(config, stages[0].dtype)
    (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if serving is not None:
        write_serving_facts(serving, staging)
    names = sorted(str(file.relative_to(staging)) for file in staging.rglob("*") if file.is_file())
    (staging / EXPORT_FILE).write_text(
        json.dumps({"files": names}, indent=1, allow_nan=False) + "\n"
    )


def shard_name(index: int, total: int) -> str:
    """File name of shard `index` (from 0) of `total`, as transformers names them."""
    return f"model-{index + 1:05d}-of-{total:05d}.safetensors"


def _write_index(staging: Path, files: Sequence[str]) -> None:
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for file in files:
        with safe_open(staging / file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a mapping)
                if name in weight_map:
                    raise ValueError(f"{name} is in both {weight_map[name]} and {file}")
                weight_map[name] = file
        total_bytes += _payload_bytes(staging / file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (staging / _INDEX).write_text(
        json.dumps(index, indent=2, sort_keys=True, allow_nan=False) + "\n"
    )


def _payload_bytes(file: Path) -> int:
    """Bytes of the tensors: a safetensors file is 8 bytes of header length, header, tensors."""
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
    return file.stat().st_size - 8 - header_bytes


def copy_other_files(source: Path, folder: Path) -> None:
    """Copy configuration and tokenizer of a model: its files that are not weights."""
    for file in sorted(source.iterdir()):
        is_weights = file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(".index.json")
        if file.is_file() and not is_weights and file.name not in (MANIFEST, EXPORT_FILE):
            shutil.copyfile(file, folder / file.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, folder / TEMPLATES)


def _with_dtype(config: Mapping[str, object], dtype: str) -> dict[str, object]:
    """The config with the dtype of the weights, under the key that it uses (old or new name)."""
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, key: dtype}
