"""Weights from a Hugging Face folder to a Megatron checkpoint and back, in one process.

    hf_to_megatron(hf, out, layout=TrainerLayout(tp=8, pp=2))
    megatron_to_hf(out, hf_again)

No process group, no Megatron-Core, no training configuration. Everything that can be wrong with
the input is looked for before the first byte is written. Files are written into a hidden folder
beside `out`, described in its manifest and published by one rename; after a failure it is removed,
and what a killed conversion left is removed by the next one. The bits of the weights are kept;
with `dtype` they are converted, to bf16 by rounding to nearest, ties to even.

A converted folder holds, beside the checkpoint, `hf/` with configuration and tokenizer, so that it
can be converted back without the folder it came from.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from herl_megatron.data.serving import read_serving_facts
from herl_megatron.files.manifest import damage, write_manifest
from herl_megatron.files.run_files import MANIFEST
from herl_megatron.files.strict_json import read_object
from herl_megatron.megatron.convert.hf_writer import HFWriter
from herl_megatron.megatron.convert.layout import TrainerLayout
from herl_megatron.megatron.convert.megatron_reader import MegatronFolder, weights_folder
from herl_megatron.megatron.convert.megatron_writer import MegatronWriter
from herl_megatron.megatron.scratch import Scratch
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.hf_config import read_architecture
from herl_megatron.models.hf_folder import complete_export, copy_other_files, start_export
from herl_megatron.models.hf_reader import HFFolder

HF_PART = "hf"
"""Configuration and tokenizer inside a converted folder."""
_DRIVER = "driver.json"  # beside the `trainer/` of a run's checkpoint
_RECORD_BYTES = 2048  # around each value of a checkpoint, its entry in the index included
_OTHER_BYTES = 32 << 20  # tokenizer and configuration, generously
Progress = Callable[[int, int], object]
"""(bytes written just now, bytes in all) -> not used."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    folder: Path
    weight_bytes: int
    seconds: float
    """From the configuration, whose reading imports transformers, to the published folder."""


@dataclass(frozen=True)
class Files:
    """How a checkpoint's files are written.

    file_bytes: a file is closed at this size; none makes about 32 files in all.
    """

    threads: int = 4
    file_bytes: int | None = None


def hf_to_megatron(
    hf: Path,
    out: Path,
    *,
    layout: TrainerLayout,
    weights: Path | None = None,
    dtype: torch.dtype | None = None,
    files: Files = Files(),
    check_hashes: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Write `hf`'s weights, or those of the Megatron folder `weights`, for a layout.

    Args:
        hf: a Hugging Face folder; with `weights` only its configuration and tokenizer are used.
        weights: a Megatron checkpoint of any layout.
        dtype: none keeps what is stored.
        check_hashes: compare the input with its manifest, where it has one.

    Raises:
        ValueError: `out` exists, the input is not complete, damaged or of another model, the
            layout does not fit, or the disk has too little room. Nothing was written.
        OSError: writing failed; what had been written was removed.
    """
    architecture = read_architecture(str(hf))
    started = time.monotonic()
    layout.check(architecture)
    source: HFFolder | MegatronFolder
    if weights is None:
        source = _open_hf(hf, architecture, check_hashes=check_hashes)
    else:
        source = _open_megatron(weights, architecture, dtype, check_hashes=check_hashes)
    writer = MegatronWriter(
        source,
        architecture,
        layout,
        dtype=dtype,
        file_bytes=files.file_bytes or max(16 << 20, min(512 << 20, source.num_bytes // 32)),
    )
    needed = writer.num_bytes + writer.num_pieces * _RECORD_BYTES
    with _staging(out, needed) as staging:
        facts = writer.write(
            staging, threads=files.threads, done=_counted(progress, writer.num_bytes)
        )
        (staging / HF_PART).mkdir()
        copy_other_files(hf, staging / HF_PART)
        described = {"architecture": asdict(architecture), "layout": asdict(layout)}
        write_manifest(staging, described, known=facts)
    return Conversion(out, writer.num_bytes, time.monotonic() - started)


def megatron_to_hf(
    megatron: Path,
    out: Path,
    *,
    hf: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
    threads: int = 4,
    check_hashes: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Write a Megatron folder's weights, of any layout, as a Hugging Face folder.

    Args:
        megatron: what `hf_to_megatron` wrote, or `step_N` of a run's checkpoints.
        hf: where configuration and tokenizer come from; none takes those of the converted folder,
            or the model that the run was started with.
        shard_bytes: largest shard; none makes about 16, of 64 MiB to 1 GiB.
        dtype: none keeps the weights that the model computes with; fp32 takes the optimizer's
            main weights of a training checkpoint where there are any.

    Raises:
        ValueError, OSError: as `hf_to_megatron`.
    """
    hf = hf or model_folder(megatron)
    architecture = read_architecture(str(hf))
    serving = read_serving_facts(hf)
    started = time.monotonic()
    source = _open_megatron(megatron, architecture, dtype, check_hashes=check_hashes)
    writer = HFWriter(
        source,
        architecture,
        dtype=dtype,
        shard_bytes=shard_bytes or max(64 << 20, min(1 << 30, source.num_bytes // 16)),
    )
    with _staging(out, writer.num_bytes) as staging:
        counted = _counted(progress, writer.num_bytes)
        shards, facts = writer.write(staging, threads=threads, done=counted)
        complete_export(staging, stages=[shards], source=hf, serving=serving)
        write_manifest(staging, known=facts)
    return Conversion(out, writer.num_bytes, time.monotonic() - started)


def model_folder(megatron: Path) -> Path:
    """The folder with configuration and tokenizer that belongs to a Megatron folder.

    Raises:
        ValueError: it names none.
    """
    folder = weights_folder(megatron)
    if (folder / HF_PART / "config.json").is_file():
        return folder / HF_PART
    driver = folder.parent / _DRIVER
    if driver.is_file():
        path = _trained_from(driver)
        if (path / "config.json").is_file():
            return path
        raise ValueError(
            f"{megatron} was trained from model.path {str(path)!r}, which is not there (from"
            f" {Path.cwd()}); name the model's folder with --hf"
        )
    raise ValueError(
        f"{megatron} holds no configuration and tokenizer; name the model's folder with --hf"
    )


def _trained_from(driver: Path) -> Path:
    """`model.path` of the run that a checkpoint's `driver.json` is of."""
    try:
        return Path(read_object(driver)["config"]["model"]["path"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{driver} names no model.path; name the model's folder with --hf"
        ) from error


def check_hashes_of(weights: Path) -> Path | None:
    """Compare a folder with its manifest, which for a run's `trainer/` lies above it.

    Returns the folder whose manifest it is; None without one.

    Raises:
        ValueError: it differs.
    """
    folder = weights.parent if (weights.parent / _DRIVER).is_file() else weights
    if not (folder / MANIFEST).is_file():
        return None
    if found := damage(folder):
        raise ValueError(f"{folder} is damaged: {found}; copy or convert it again")
    return folder


def _open_hf(folder: Path, architecture: Architecture, *, check_hashes: bool) -> HFFolder:
    source = HFFolder(folder)
    source.check(architecture)
    if check_hashes:
        check_hashes_of(folder)
    return source


def _open_megatron(
    path: Path, architecture: Architecture, dtype: torch.dtype | None, *, check_hashes: bool
) -> MegatronFolder:
    # The writers ask a thread for one tensor at a time.
    folder = MegatronFolder(path, architecture, scratch=Scratch())
    if check_hashes:
        check_hashes_of(folder.path)
    if dtype is torch.float32 and folder.has_main_weights:
        folder = MegatronFolder(path, architecture, main_weights=True, scratch=Scratch())
    folder.check()
    return folder


def _counted(progress: Progress | None, total: int) -> Callable[[int], object]:
    return (lambda count: None) if progress is None else (lambda count: progress(count, total))


@contextmanager
def _staging(out: Path, needed: int) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` at the end, or is removed."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    staging = start_export(out.absolute())
    try:
        needed += _OTHER_BYTES
        if (free := shutil.disk_usage(parent).free) < needed:
            raise ValueError(
                f"{out} needs {needed} bytes but its disk has {free} free; free"
                f" {needed - free} bytes or write to another disk"
            )
        try:
            yield staging
        except OSError as error:
            raise OSError(
                error.errno,
                f"{out} could not be written ({error.strerror}): of {needed} bytes needed"
                f" {shutil.disk_usage(parent).free} are free now; what was written has been"
                " removed, so free some room and start again",
            ) from error
        os.rename(staging, out.absolute())
    finally:
        shutil.rmtree(staging, ignore_errors=True)
