"""Errors of the operating system by their cause, and the mode of files that others read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from herl_megatron.data.toy_files import write_toy_task
from herl_megatron.files.os_errors import explain, with_usual_mode


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/r/x"),
         "No space left on device (/r/x); free space or choose another run.dir"),
        (OSError(errno.EROFS, "Read-only file system", "/r/x"),
         "Read-only file system (/r/x); let this user write there, or choose another run.dir"),
        (OSError(errno.ENAMETOOLONG, "File name too long"),
         "File name too long; give it a shorter name"),
        (OSError(errno.EMFILE, "Too many open files"),
         "Too many open files; raise the limit of open files (ulimit -n)"),
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /long"),
         "AF_UNIX path length cannot exceed 107 bytes: /long; set TMPDIR to a short path, such as"
         " /tmp: sockets lie below it"),
        (OSError("weights were lost"), "weights were lost"),
    ],
)  # fmt: skip
def test_only_a_full_disk_is_one(error: OSError, said: str) -> None:
    assert explain(error, elsewhere="choose another run.dir") == said


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_can_be_read_by_whom_the_umask_allows(
    tmp_path: Path, umask: int, mode: int
) -> None:
    file = tmp_path / "model.safetensors"
    before = os.umask(umask)
    try:
        with with_usual_mode(file):
            save_file({"a": torch.ones(2)}, file)
        write_toy_task(tmp_path / "t", seed=0, train_prompts=1, heldout_prompts=1, sft_rows=1)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == mode
    assert (tmp_path / "t/model/model.safetensors").stat().st_mode & 0o777 == mode
