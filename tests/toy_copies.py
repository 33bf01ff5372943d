"""The toy task made once in a process, and copied to whoever wants it."""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from pathlib import Path

from herl_megatron.data.toy_files import write_toy_task


def copy_toy_task(
    folder: Path, *, seed: int, train_prompts: int, heldout_prompts: int, sft_rows: int
) -> None:
    """What `write_toy_task` writes, the same bytes; making the tokenizer alone takes a second."""
    made = _made(seed, train_prompts, heldout_prompts, sft_rows)
    shutil.copytree(made.path, folder, dirs_exist_ok=True)


class _Folder:
    """Removed at the process's end."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="toy-task-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@functools.cache
def _made(seed: int, train_prompts: int, heldout_prompts: int, sft_rows: int) -> _Folder:
    folder = _Folder()
    write_toy_task(
        folder.path, seed=seed, train_prompts=train_prompts, heldout_prompts=heldout_prompts,
        sft_rows=sft_rows,
    )  # fmt: skip
    return folder
