"""What the conversion tools share: arguments, a progress bar, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

if TYPE_CHECKING:
    import torch

    from herl_megatron.megatron.convert.conversion import Conversion

_M_MMAP_THRESHOLD = -3  # malloc.h
_DTYPES = {"keep": None, "bf16": "bfloat16", "fp32": "float32"}


def at_least_one(text: str) -> int:
    """The type of an argument that counts something."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of both directions."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument(
        "--dtype",
        choices=list(_DTYPES),
        default="keep",
        help="of the weights; bf16 rounds to nearest, ties to even (default: as stored)",
    )
    parser.add_argument("--threads", type=at_least_one, default=4, help="files written at a time")
    parser.add_argument(
        "--skip-hashes", action="store_true", help="do not compare the input with its manifest"
    )


def dtype_of(name: str) -> torch.dtype | None:
    """The dtype of `--dtype`; None keeps what is stored."""
    import torch

    torch_name = _DTYPES[name]
    return None if torch_name is None else getattr(torch, torch_name)


def report(done: Conversion) -> None:
    """Say what was written."""
    speed = done.weight_bytes / done.seconds / 1e9
    Console().print(
        f"{done.folder}: {done.weight_bytes:,} bytes of weights in {done.seconds:.2f} s"
        f" ({speed:.2f} GB/s)",
        highlight=False,
        soft_wrap=True,
    )


def run(work: Callable[[Callable[[int, int], object]], object]) -> int:
    """`work(progress)` with a progress bar on stderr; 1 and the message if it cannot be done."""
    import torch

    torch.set_num_threads(1)  # the threads are ours: one per file
    _return_memory_at_once()
    console = Console(stderr=True)
    bar = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console)
    task = bar.add_task("")
    try:
        with bar:
            work(lambda count, total: bar.update(task, advance=count, total=total))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _return_memory_at_once() -> None:
    """Have glibc map large blocks by themselves, as it does at first anyway.

    It raises that threshold with every large block that is freed, and then keeps such blocks in one
    arena per thread: several times the memory that is in use at any moment.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such habit
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 1 << 20)
