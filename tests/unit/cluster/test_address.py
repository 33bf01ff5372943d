"""A cluster's address is tried before Ray, which waits for ever where nothing is ever said."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from herl_megatron.cluster.address import silence_of
from herl_megatron.cluster.session import check_address
from herl_megatron.config.schema import ClusterConfig

SETTINGS = bytes.fromhex("000000040000000000")  # RFC 9113, 6.5: an empty SETTINGS frame


@contextmanager
def server(says: bytes | None, host: str = "127.0.0.1") -> Iterator[int]:
    """The port of a listener that says this to whoever comes and ends the connection; None: it
    accepts and says nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1 << 10)
                connection.sendall(says or b"")

        if says is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])


def test_a_cluster_address_that_accepts_and_never_answers_is_a_bounded_wait() -> None:
    """Ray itself waited more than 150 s without a word."""
    with server(None) as port:
        start = time.monotonic()
        assert silence_of(f"127.0.0.1:{port}", answer_timeout_s=0.5) == (
            "what listens there accepts and says nothing for 0.5 s"
        )
        assert 0.5 <= time.monotonic() - start < 5


@pytest.mark.parametrize("prefix", ["", "ray://"])
@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_what_speaks_grpc_may_be_a_ray(prefix: str, host: str, shown: str) -> None:
    with server(SETTINGS, host) as port:
        check_address(ClusterConfig(address=f"{prefix}{shown}:{port}"))


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (b"", "what listens there ends the connection and is no Ray"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is no Ray (it speaks no gRPC)"),
        (b"-ERR unknown command\r\n", "what listens there is no Ray (it speaks no gRPC)"),
    ],
    ids=["closes", "http", "redis"],
)
def test_another_server_is_no_ray(says: bytes, problem: str) -> None:
    with server(says) as port:
        assert silence_of(f"127.0.0.1:{port}") == problem


def test_a_cluster_address_without_a_listener_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"cluster.address is '{address}'.*ray start"):
            check_address(ClusterConfig(address=address))
    for nonsense in ("nonsense", "host:port", "127.0.0.1:²"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            check_address(ClusterConfig(address=nonsense))


def test_with_tls_the_handshake_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with server(None) as port:
        assert silence_of(f"127.0.0.1:{port}", answer_timeout_s=0.1) == ""


def test_auto_is_where_the_environment_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    check_address(ClusterConfig(address="auto"))
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ValueError, match="cluster.address is 'nonsense'"):
        check_address(ClusterConfig(address="auto"))
    check_address(ClusterConfig())  # it starts its own
