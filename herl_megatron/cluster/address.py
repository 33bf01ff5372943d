"""Whether a Ray cluster answers at an address, asked before Ray itself, which would try for minutes
or, where a connection is accepted and nothing ever said, for ever."""

from __future__ import annotations

import os
import socket

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 20.0  # a head node with much to do
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])
"""What a client of gRPC says first (RFC 9113, 3.4); a server answers with its settings."""


def silence_of(address: str, *, answer_timeout_s: float = _ANSWER_TIMEOUT_S) -> str:
    """Why no Ray answers at `[ray://]HOST:PORT`, or the empty string.

    answer_timeout_s: what the first answer may take once the connection stands.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return f"{address!r} is no HOST:PORT"
    try:
        with socket.create_connection(
            (host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S
        ) as server:
            return _answer(server, answer_timeout_s)
    except (OSError, OverflowError, UnicodeError) as error:  # no such port, no such host name
        return f"nothing answers there ({error})"


def _answer(server: socket.socket, timeout_s: float) -> str:
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false"):
        return ""  # the server waits for a handshake, which Ray has the certificates for
    server.settimeout(timeout_s)
    server.sendall(_PREFACE)
    header = b""
    try:
        while len(header) < _FRAME_HEADER_BYTES:
            received = server.recv(_FRAME_HEADER_BYTES - len(header))
            if not received:
                return "what listens there ends the connection and is no Ray"
            header += received
    except TimeoutError:
        return f"what listens there accepts and says nothing for {timeout_s:g} s"
    return "" if header[3] == _SETTINGS else "what listens there is no Ray (it speaks no gRPC)"
