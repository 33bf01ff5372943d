"""What a node of a run is checked for; agents are called here, as Ray would do elsewhere."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from herl_megatron.cluster.nodes import (
    NodeAgent,
    NodeFacts,
    check_facts,
    interface_of,
    listen_at,
    tcp_url,
)
from herl_megatron.weight_sync.bucket_folder import BucketFolder, memory_id


@pytest.fixture
def agent() -> Iterator[NodeAgent]:
    made = NodeAgent()
    yield made
    made.close()


def looked(agent: NodeAgent, tmp_path: Path) -> NodeFacts:
    token = tmp_path / "token"
    token.write_text("secret", encoding="ascii")
    return agent.look([str(tmp_path)], str(token))


def check(facts: NodeFacts) -> None:
    check_facts("node 10.0.0.2", facts, token="secret", folder=Path("/runs/mine"))


def test_an_equal_node_passes(agent: NodeAgent, tmp_path: Path) -> None:
    check(looked(agent, tmp_path))


def test_what_differs_is_said_with_the_node(agent: NodeAgent, tmp_path: Path) -> None:
    facts = looked(agent, tmp_path)
    versions = {**facts.versions, "torch": "1.0", "vllm-extra": "2"}
    for other, message in (
        ({"missing": ("/models/m",)}, r"node 10\.0\.0\.2 does not see /models/m"),
        ({"token": ""}, r"node 10\.0\.0\.2 does not see .* /runs/mine \(run\.dir\)"),
        (
            {"versions": versions},
            r"node 10\.0\.0\.2 has torch 1\.0 \(here .*vllm-extra 2 \(here none",
        ),
        ({"code": "other"}, r"node 10\.0\.0\.2 has other source files"),
    ):
        with pytest.raises(ValueError, match=message):
            check(dataclasses.replace(facts, **other))


def test_files_that_are_not_there_are_found(
    agent: NodeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herl_megatron.cluster.nodes._TOKEN_TIMEOUT_S", 0.3)
    gone = str(tmp_path / "model")
    facts = agent.look([gone, str(tmp_path)], str(tmp_path / "no-token"))
    assert facts.missing == (gone,) and facts.token == ""
    # A folder on this node's own disk, where the driver's is elsewhere: no wait for late files.
    assert agent.look([], str(tmp_path / "other" / "token")).token == ""


def test_nodes_that_cannot_be_reached_are_named(agent: NodeAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        open_port = server.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as other:
            closed_port = other.getsockname()[1]
        problems = agent.reach([("127.0.0.1", open_port), ("127.0.0.1", closed_port)])
    assert len(problems) == 1 and problems[0].startswith(f"127.0.0.1:{closed_port} (")


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_addresses_of_both_kinds(agent: NodeAgent, host: str, shown: str) -> None:
    if interface_of(host) is None:
        pytest.skip(f"no interface has {host}")
    with listen_at(host) as server:
        port = server.getsockname()[1]
        assert agent.reach([(host, port)]) == []
        url = tcp_url((host, port))
        assert url == f"tcp://{shown}:{port}"
        assert (urlsplit(url).hostname, urlsplit(url).port) == (host, port)  # as torch reads it


def test_a_bucket_folder_goes_with_its_owner_only(agent: NodeAgent, tmp_path: Path) -> None:
    driver = BucketFolder("run", parent=tmp_path)
    agent.open_buckets(str(driver.folder), 0)  # the same machine's: it is the driver's
    agent.close()
    assert driver.folder.exists()
    driver.close()
    agent.open_buckets(str(driver.folder), 0)
    assert driver.folder.is_dir() and str(driver.folder / "bucket_0") == driver.paths[0]
    agent.close()
    assert not driver.folder.exists()
    with pytest.raises(ValueError, match=r"needs 1000000000000000000 bytes of shared memory"):
        agent.open_buckets(str(driver.folder), 10**18)


def test_network_and_memory_are_told_apart(tmp_path: Path) -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("198.51.100.7") is None
    assert memory_id() == memory_id()
    assert memory_id(Path("/dev/shm")) != memory_id(Path("/proc"))
