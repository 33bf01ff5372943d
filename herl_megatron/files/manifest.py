"""Size and hash of every file of a folder, and whether they still are what they were.

Hashes are XXH3 of 128 bits (`xxh128sum` prints the same): they find damage, ten times as fast as
SHA-256, and are no protection against somebody who means to deceive. Older manifests name SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from herl_megatron.files.run_files import MANIFEST

FileFacts = dict[str, Any]
"""`bytes` and, under the name of its algorithm, the hash in hexadecimal."""
_ALGORITHM = "xxh128"
_HASHES: Mapping[str, Callable[[], Any]] = {"xxh128": xxhash.xxh3_128, "sha256": hashlib.sha256}
_BLOCK_BYTES = 1 << 20  # hashed while it still is in the processor's cache
_THREADS = 8


class HashedFile(io.RawIOBase):
    """A new file, written from beginning to end and hashed on the way: nothing is read back."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb")
        self._hash = _HASHES[_ALGORITHM]()
        self._bytes = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Append all of `data`, any bytes in memory."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            block = view[start : start + _BLOCK_BYTES]
            self._hash.update(block)
            self._file.write(block)
        self._bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes so far."""
        return self._bytes

    def flush(self) -> None:
        """Hand over to the operating system."""
        self._file.flush()

    def sync(self) -> None:
        """Onto the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing more is written."""
        try:
            super().close()  # flushes
        finally:
            self._file.close()

    def facts(self) -> FileFacts:
        """What the manifest says about the file."""
        return {"bytes": self._bytes, _ALGORITHM: self._hash.hexdigest()}


def write_manifest(
    folder: Path,
    more: Mapping[str, Any] | None = None,
    *,
    known: Mapping[str, FileFacts] | None = None,
) -> None:
    """Describe every file below `folder` in its `manifest.json`, with the facts `more` beside.

    Raises:
        OSError: `known` does not fit (`describe_files`).
    """
    files = describe_files(folder, known=known)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({**(more or {}), "files": files}, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def describe_files(
    folder: Path, *, known: Mapping[str, FileFacts] | None = None
) -> dict[str, FileFacts]:
    """Size and hash of every file below `folder` but its own manifest.

    known: what those who wrote them say of some files, by path in `folder`; these are not read.

    Raises:
        OSError: a known file is not there in its size.
    """
    own = folder / MANIFEST
    files = {
        str(file.relative_to(folder)): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != own
    }
    found = dict(known or {})
    for name, facts in found.items():
        size = files[name].stat().st_size if name in files else None
        if size != facts["bytes"]:
            raise OSError(
                f"{folder / name} was written with {facts['bytes']} bytes but"
                f" {'is not there' if size is None else f'has {size}'}; all machines need the"
                " folder on one shared file system"
            )
    with ThreadPoolExecutor(_THREADS) as threads:
        rest = [name for name in files if name not in found]
        hashes = threads.map(lambda name: _hash_of(files[name], _ALGORITHM), rest)
        for name, digest in zip(rest, hashes, strict=True):
            found[name] = {"bytes": files[name].stat().st_size, _ALGORITHM: digest}
    return {name: found[name] for name in files}


def damage(folder: Path, *, hashes: bool = True) -> str | None:
    """What differs from the folder's manifest; None if nothing does.

    hashes: compare contents too, which reads everything, several files at a time; without it names
        and sizes only.
    """
    if not folder.is_dir():
        return "it is no folder"
    wanted = _listed(folder / MANIFEST)
    if isinstance(wanted, str):
        return wanted
    for name, facts in wanted.items():  # cheap checks of all files first
        file = folder / name
        if not isinstance(facts, dict) or not _HASHES.keys() & facts.keys():
            return f"{MANIFEST} has no hash of {name} that this version knows"
        if not os.path.isfile(file):
            return f"{name} is missing"
        if file.stat().st_size != facts.get("bytes"):
            return f"{name} has {file.stat().st_size} bytes instead of {facts.get('bytes')}"
    if not hashes:
        return None
    with ThreadPoolExecutor(_THREADS) as threads:
        same = threads.map(lambda name: _is_as_hashed(folder / name, wanted[name]), wanted)
        return next(
            (f"{name} has other content" for name, ok in zip(wanted, same, strict=True) if not ok),
            None,
        )


def _listed(manifest: Path) -> dict[str, Any] | str:
    """The files that a manifest lists, or why there are none."""
    if not os.path.lexists(manifest):
        return f"no {MANIFEST}"
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"{MANIFEST} cannot be read"
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not files:
        return f"{MANIFEST} cannot be read: it lists no files"
    return files


def _is_as_hashed(file: Path, facts: FileFacts) -> bool:
    algorithm = next(name for name in _HASHES if name in facts)
    return bool(_hash_of(file, algorithm) == facts[algorithm])


def _hash_of(file: Path, algorithm: str) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, _HASHES[algorithm]).hexdigest()
