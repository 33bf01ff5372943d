"""What goes over the socket between a process and its child.

There: pickled requests, from us. Back: small frames of numbers and UTF-8 text that are never
unpickled, because the child runs code of others.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from herl_megatron.rubrics.checks.local import Mode
from herl_megatron.types import Criterion, GroupToReward

READY, FORK, KILL, STATUS = b"R", b"F", b"K", b"S"
"""Messages between a process and its warden, each answered by the same: it is there (its id); fork
a child on the socket that comes along (the child's id); end the child and all that it started; the
same of one that ended by itself (its exit code)."""
MESSAGE = struct.Struct("!cq")
_LENGTH = struct.Struct("!Q")
_REPLY = struct.Struct("!IIBB")
_LONGEST_TEXT = 1 << 24


@dataclass(frozen=True)
class CheckLimits:
    """What a user's check may take, besides the time of each call."""

    memory_bytes: int = 4 << 30
    """By all its processes together, on top of what importing the module took."""
    import_s: float = 60.0
    """Longest import of the modules."""
    tasks: int = 256
    """Most threads and processes at a time, on top of those after the import."""


@dataclass(frozen=True)
class Load:
    """Import modules. Answered by IMPORTING before each, then LOADED or REFUSED."""

    modules: tuple[str, ...]
    folder: str
    limits: CheckLimits


@dataclass(frozen=True)
class Look:
    """Validate parameters and describe. Answered by PROBLEM or DESCRIBED."""

    criterion: Criterion


@dataclass(frozen=True)
class Run:
    """Run checks on one text. Answered by one verdict per criterion, in order."""

    criteria: tuple[Criterion, ...]
    text: str
    mode: Mode
    timeout_s: float | None


@dataclass(frozen=True)
class LoadReward:
    """Import `module:function`. Answered as `Load`."""

    name: str
    folder: str
    limits: CheckLimits


@dataclass(frozen=True)
class Reward:
    """Call the function on a group. Answered by REWARDS or PROBLEM."""

    group: GroupToReward
    timeout_s: float


Request = Load | Look | Run | LoadReward | Reward


class Said(IntEnum):
    """What a reply means; its text is a module, a reason, a description or JSON."""

    IMPORTING = 1
    LOADED = 2
    REFUSED = 3
    PROBLEM = 4
    DESCRIBED = 5
    FOLLOWED = 6
    NOT_FOLLOWED = 7
    UNVERIFIABLE = 8
    LEFT_OUT = 9
    MEASURED = 10
    """A verdict as a number, which is the text."""
    REWARDS = 11
    """JSON: of each response a number, or in a list the reason why there is none."""


@dataclass(frozen=True)
class Reply:
    """One frame from the child. `worn`: it should serve no further request."""

    number: int
    said: Said
    worn: bool
    text: str


def pack_request(number: int, request: Request) -> bytes:
    """A request with its number, as bytes with their length before them."""
    body = pickle.dumps((number, request))
    return _LENGTH.pack(len(body)) + body


def read_request(receive_exactly: Callable[[int], bytes]) -> tuple[int, Request]:
    """The next request; EOFError at the end."""
    (length,) = _LENGTH.unpack(receive_exactly(_LENGTH.size))
    number, request = pickle.loads(receive_exactly(length))
    return number, request


def pack_reply(reply: Reply) -> bytes:
    """A reply as bytes."""
    body = reply.text.encode("utf-8", "backslashreplace")[:_LONGEST_TEXT]
    return _REPLY.pack(len(body), reply.number, reply.said, reply.worn) + body


def unpack_reply(buffer: bytearray) -> Reply | None:
    """Take the first reply off the buffer; None while it is incomplete. ValueError: it is none."""
    if len(buffer) < _REPLY.size:
        return None
    length, number, said, worn = _REPLY.unpack_from(buffer)
    if length > _LONGEST_TEXT:
        raise ValueError(f"a reply of {length} bytes")
    end = _REPLY.size + length
    if len(buffer) < end:
        return None
    text = bytes(buffer[_REPLY.size : end]).decode("utf-8", "replace")
    del buffer[:end]
    return Reply(number, Said(said), bool(worn), text)
