"""What an error of the operating system means for who started the command, by its kind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FIXES: Mapping[int, str] = {
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open; end other programs",
    errno.ENOMEM: "free memory, or take less of it",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or end others",
    errno.EIO: "its disk fails; look into the kernel's log (dmesg)",
    errno.ESTALE: "its file server lost it; mount it anew",
    errno.ENOENT: "it is not there, or was removed meanwhile",
    errno.EADDRINUSE: "another program has that port; end it",
    errno.ECONNREFUSED: "nothing listens there",
    errno.EHOSTUNREACH: "no way leads there; look at the network",
    errno.ENETUNREACH: "no way leads there; look at the network",
}


def explain(error: OSError, *, elsewhere: str) -> str:
    """What happened, where, and what to do, in one line.

    elsewhere: how to have files written in another place, such as `choose another run.dir`.
    """
    where = f" ({error.filename})" if error.filename else ""
    said = f"{error.strerror or error or type(error).__name__}{where}"
    if "AF_UNIX" in said:  # of Ray, or without a number of Python's own
        fix = "set TMPDIR to a short path, such as /tmp: sockets lie below it"
    elif error.errno in _NO_SPACE:
        fix = f"free space or {elsewhere}"
    elif error.errno in _IN_THE_WAY:
        fix = f"a file or folder of that name is in the way; {elsewhere}"
    elif error.errno in _NOT_ALLOWED:
        fix = f"let this user write there, or {elsewhere}"
    else:
        fix = _FIXES.get(error.errno or 0, "")
    return f"{' '.join(said.split())}; {fix}" if fix else " ".join(said.split())


def absent(path: str | Path, kind: Literal["file", "folder"]) -> str:
    """Why no such thing is at a path that somebody gave, in words before it (`no such file`), or
    the empty string. `Path.is_file` raises for a name that is too long or a folder that may not be
    entered."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, ValueError):  # ValueError: a name with a zero byte
        return "a link to nothing" if os.path.islink(path) else f"no such {kind}"
    except OSError as error:
        return f"no such {kind} ({error.strerror})"
    is_file, is_folder = stat.S_ISREG(mode), stat.S_ISDIR(mode)
    if is_file if kind == "file" else is_folder:
        return ""
    found = "a folder" if is_folder else "a file" if is_file else "a pipe, device or socket"
    return f"no {kind} but {found}"


@contextmanager
def with_usual_mode(path: Path) -> Iterator[None]:
    """A new file inside gets the permissions of any other: some libraries write by way of a
    temporary file that only its owner may read."""
    path.touch()  # a umask can be looked at only by setting it, for all threads
    mode = path.stat().st_mode & 0o777
    yield
    path.chmod(mode)
