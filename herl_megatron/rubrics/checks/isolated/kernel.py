"""What the kernel is asked to do for a child, by prctl(2) and a system call filter."""

from __future__ import annotations

import ctypes
import platform
import signal
import struct

_PDEATHSIG, _SECCOMP, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 22, 36, 38  # <linux/prctl.h>
_FILTER_MODE = 2
# Audit numbers of an architecture, and its system calls mmap and mremap.
_ARCHITECTURES = {"x86_64": (0xC000003E, 9, 25), "aarch64": (0xC00000B7, 222, 216)}
_LOAD, _IF_EQUAL, _IF_ABOVE, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # <linux/bpf.h>
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_CALL, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_WRITABLE = 2  # PROT_WRITE


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _prctl(option: int, *arguments: object) -> int:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return int(ctypes.CDLL(None, use_errno=True).prctl(option, *padded))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends."""
    _prctl(_PDEATHSIG, int(signal.SIGKILL))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl(_SUBREAPER, 1)


def kill_at_huge_request(limit_bytes: int) -> bool:
    """Have the kernel kill this process (SIGSYS) when it asks for more writable memory at once.

    As an error (RLIMIT_AS) it would be a MemoryError, of which a check's `except Exception` makes
    a verdict. Lasts and is inherited. False where the kernel or the architecture cannot do it.
    """
    names = _ARCHITECTURES.get(platform.machine())
    if names is None or _prctl(_NO_NEW_PRIVILEGES, 1) != 0:
        return False
    program = _filter(*names, limit_bytes)
    asked = _Program(len(program) // 8, program)
    return _prctl(_SECCOMP, _FILTER_MODE, ctypes.byref(asked)) == 0


def _filter(architecture: int, mmap: int, mremap: int, limit_bytes: int) -> bytes:
    """mmap(_, length, protection, ...) if writable, and mremap(_, _, length, ...)."""
    high, low = limit_bytes >> 32, limit_bytes & 0xFFFFFFFF
    length, protection, new_length = (_ARGUMENTS + 8 * i for i in (1, 2, 2))
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 0, 16, architecture),
        (_LOAD, 0, 0, _CALL),
        (_IF_EQUAL, 8, 0, mremap),
        (_IF_EQUAL, 0, 13, mmap),
        (_LOAD, 0, 0, protection),
        (_IF_ANY_BIT, 0, 11, _WRITABLE),
        (_LOAD, 0, 0, length + 4),
        (_IF_ABOVE, 8, 0, high),
        (_IF_EQUAL, 0, 8, high),
        (_LOAD, 0, 0, length),
        (_IF_ABOVE, 5, 6, low),
        (_LOAD, 0, 0, new_length + 4),
        (_IF_ABOVE, 3, 0, high),
        (_IF_EQUAL, 0, 3, high),
        (_LOAD, 0, 0, new_length),
        (_IF_ABOVE, 0, 1, low),
        (_RETURN, 0, 0, _KILL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", code, yes, no, k) for code, yes, no, k in lines)
