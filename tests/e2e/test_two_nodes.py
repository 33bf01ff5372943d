"""A run over two Ray nodes that share files, but neither an address nor memory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from herl_megatron.observability.metrics import is_measured
from tests.e2e.conftest import Start
from tests.e2e.two_nodes import ROOT, Node, ray_cluster, two_nodes, why_not
from tests.limits import HANG_S

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(why_not()), reason=why_not())]
LAYOUT = [
    "megatron.tensor_parallel=2", "megatron.data_parallel=2", "rollout.replicas=2",
    "weight_sync.bucket_bytes=100000", "parity.every=1", "data.eval=", "train.eval_every=0",
]  # fmt: skip
Nodes = tuple[Node, Node]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with two_nodes() as both:
        yield both


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line without what measures time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not is_measured(key)} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def train(node: Node, folder: Path, overrides: Sequence[str], env: dict[str, str]) -> Popen[str]:
    command: list[str | Path] = [
        sys.executable, "-m", "herl_megatron.cli", "train", ROOT / "configs/quickstart_cpu.yaml",
        "run.dir=.", "run.name=two", "cluster.address=10.77.0.1:6379", *overrides,
    ]  # fmt: skip
    return node.start(command, log=folder / "output", **env)


def test_two_nodes_compute_what_one_does_and_a_lost_node_is_survived(
    forked_herl: Start, small: list[str], toy: Path, nodes: Nodes, tmp_path: Path
) -> None:
    """The first run loses a node without a word, ends with a named error and leaves nothing in the
    other's memory. Resumed on two nodes, it ends with the files of a run on one node. Paths are
    relative to the driver's folder, and Ray is started in another one."""
    settings = [
        *small, *LAYOUT, "train.steps=6", "checkpoint.every=2", "megatron.timeout_s=60",
        "rollout.max_engine_restarts=0",
    ]  # fmt: skip
    whole = forked_herl("train", "quickstart_cpu.yaml", *settings)
    settings.append(f"model.path={os.path.relpath(toy / 'model', tmp_path)}")
    log = tmp_path / "elsewhere" / "ray.log"
    log.parent.mkdir()
    with ray_cluster(nodes, log) as env:
        begun = train(nodes[0], tmp_path, settings, env)
        done = tmp_path / "two" / "checkpoints" / "step_000002"
        _wait(done.exists, begun, tmp_path / "output")
        assert all(node.shared_memory() for node in nodes), "buckets are written on both"
        nodes[1].unplug()
        assert begun.wait(timeout=HANG_S) == 1
        said = (tmp_path / "output").read_text()
        assert "10.77.0.2" in said.split("stopped:")[-1], said
        assert nodes[0].shared_memory() == []
    code, output = whole.wait()
    assert code == 0, output

    with two_nodes() as fresh, ray_cluster(fresh, log) as env:
        again = train(fresh[0], tmp_path, [*settings, "run.resume=true"], env)
        assert again.wait(timeout=HANG_S) == 0, (tmp_path / "output").read_text()
        assert [node.shared_memory() for node in fresh] == [[], []]
    assert "resumed from" in (tmp_path / "output").read_text()
    assert len(metrics(whole.folder)) == 6
    assert metrics(tmp_path / "two") == metrics(whole.folder)
    for part in ("rollouts", "policy"):
        assert files(tmp_path / "two" / part) == files(whole.folder / part)


def _wait(true: Callable[[], bool], process: Popen[str], output: Path) -> None:
    end = time.monotonic() + HANG_S
    while not true():
        assert process.poll() is None and time.monotonic() < end, output.read_text()
        time.sleep(0.02)
