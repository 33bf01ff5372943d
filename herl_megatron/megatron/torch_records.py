"""Tensors that `torch.save` writes one behind the other, and reads as views of the mapped file.

Megatron's checkpoint files (`*.distcp`) are made of such records.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_LOCAL_HEADER_BYTES = 30


@contextmanager
def without_checksums() -> Iterator[None]:
    """`torch.save` without ZIP's own checksums: they cost more than the writing and hold up all
    other threads; the folder's manifest has better ones."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def write_error(error: BaseException) -> OSError | None:
    """The failed write behind an error of `torch.save`, which cannot close its archive then."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause


class MappedFiles:
    """Maps every file once, for as long as it lives."""

    def __init__(self) -> None:
        self._mapped: dict[Path, mmap.mmap] = {}

    def tensor(self, file: Path, *, start: int, num_bytes: int) -> torch.Tensor:
        """The tensor whose record starts at byte `start` of `file`; a view, not to be written to.

        The record is a ZIP archive with the values uncompressed. Shape and strides come from its
        pickle, read onto the meta device, which leaves the values alone.

        Raises:
            ValueError: there is no such record; the file is truncated or damaged.
        """
        try:
            return self._tensor(file, start, num_bytes)
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{file} is truncated or damaged: no tensor at byte {start} ({reason}); copy it"
                " again"
            ) from error

    def _tensor(self, file: Path, start: int, num_bytes: int) -> torch.Tensor:
        mapped = self._map(file)
        if start + num_bytes > len(mapped):
            raise ValueError(f"the file ends at byte {len(mapped)}")
        window = memoryview(mapped)[start : start + num_bytes]
        form = torch.load(_opened(window), map_location="meta", weights_only=True)
        with zipfile.ZipFile(_opened(window)) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data/0")]
            if not names:
                raise ValueError("the record holds no values")
            info = archive.getinfo(names[0])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < form.nbytes:
            raise ValueError(f"the record holds {info.file_size} bytes instead of {form.nbytes}")
        header = window[info.header_offset : info.header_offset + _LOCAL_HEADER_BYTES]
        more = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        first = start + info.header_offset + _LOCAL_HEADER_BYTES + more
        count = info.file_size // form.dtype.itemsize
        flat = torch.frombuffer(mapped, dtype=form.dtype, count=count, offset=first)
        return flat.as_strided(form.shape, form.stride(), form.storage_offset())

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._mapped:
            with file.open("rb") as opened:
                # A private mapping: nothing that is done to a view can reach the file.
                self._mapped[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._mapped[file]


class _Window(io.RawIOBase):
    """Part of a mapped file as a file of its own."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, len(self._data))[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        taken = self._data[self._at : self._at + len(buffer)]
        buffer[: len(taken)] = taken
        self._at += len(taken)
        return len(taken)


def _opened(data: memoryview) -> io.BufferedReader:
    return io.BufferedReader(_Window(data))
