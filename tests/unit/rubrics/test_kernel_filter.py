"""The system call filter of a check's process, run line by line as the kernel would run it."""

from __future__ import annotations

import struct

import pytest

from herl_megatron.rubrics.checks.isolated import kernel

_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # <linux/bpf_common.h>
KILL, ALLOW = 0x80000000, 0x7FFF0000  # <linux/seccomp.h>
READ, WRITE = 1, 2  # <sys/mman.h>


def outcome(program: bytes, architecture: int, call: int, arguments: tuple[int, ...]) -> int:
    """What the program returns for a call: classic BPF over struct seccomp_data, 64-bit arguments
    as two words each, the low one first."""
    data = {0: call, 4: architecture}
    for number, value in enumerate(arguments):
        data[16 + 8 * number], data[20 + 8 * number] = value & 0xFFFFFFFF, value >> 32
    at = held = 0
    while True:
        code, yes, no, k = struct.unpack_from("HBBI", program, 8 * at)
        at += 1
        if code == _LOAD:
            held = data.get(k, 0)
        elif code == _RETURN:
            return int(k)
        else:
            true = {_EQUAL: held == k, _ABOVE: held > k, _ANY_BIT: bool(held & k)}[code]
            at += yes if true else no


@pytest.mark.parametrize("machine", kernel._ARCHITECTURES)
@pytest.mark.parametrize(
    "limit", [1, 100, 1 << 20, 10**9, (1 << 32) - 1, 1 << 32, (1 << 32) + 100, 5 * 10**9, 1 << 40]
)
def test_only_writable_memory_above_the_limit_is_refused(machine: str, limit: int) -> None:
    architecture, mmap, mremap = kernel._ARCHITECTURES[machine]
    program = kernel._filter(architecture, mmap, mremap, limit)
    for size in (0, 1, 4096, 1 << 20, limit - 1, limit, limit + 1, limit + (1 << 32), 1 << 45):
        for call, arguments, refused in (
            (mmap, (0, size, READ | WRITE), size > limit),
            (mmap, (0, size, READ), False),
            (mremap, (0, 4096, size), size > limit),
            (mremap, (0, size, 4096), limit < 4096),
            (1, (size, size, size), False),
        ):
            found = outcome(program, architecture, call, arguments)
            assert found == (KILL if refused else ALLOW), f"{call} {arguments}"
    assert outcome(program, 0x40000003, mmap, (0, 1 << 45, WRITE)) == ALLOW  # another architecture
