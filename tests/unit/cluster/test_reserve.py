"""GPUs are held for a run on a real Ray that believes to have some."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from herl_megatron.cluster import reserve as module
from herl_megatron.cluster.placement import Node, actor_options, demand
from herl_megatron.cluster.ready import missing
from herl_megatron.cluster.reserve import Reservation, run_device
from herl_megatron.config.schema import ClusterConfig, MegatronConfig, RolloutConfig
from tests.limits import HANG_S


@pytest.fixture(scope="module")
def eight_gpus() -> Iterator[None]:
    # The harder case: a Ray that hides the GPUs from whoever asks for none.
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    ray.init(
        address="local", num_cpus=2, num_gpus=8, include_dashboard=False, log_to_driver=False,
        object_store_memory=80 << 20,
        runtime_env={"py_executable": shlex.quote(sys.executable)},  # a path may hold a space
    )  # fmt: skip
    yield
    ray.shutdown()
    patch.undo()


def reserve(**megatron: Any) -> Reservation:
    wanted = demand(MegatronConfig(**megatron), RolloutConfig(replicas=2, tensor_parallel=2))
    return module.reserve(wanted, device="cuda", start_timeout_s=60)


@pytest.mark.usefixtures("eight_gpus")
def test_ranks_and_engines_share_gpus_that_no_other_run_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 3.0)
    first = reserve(data_parallel=4)
    second = reserve(data_parallel=4)
    names = [
        {gpu for slot in run.placement.trainer for gpu in slot.gpus} for run in (first, second)
    ]
    assert len(names[0]) == len(names[1]) == 4 and not names[0] & names[1]
    with pytest.raises(ValueError, match=r"needs 4 GPUs.* 0 of the Ray cluster's 8 GPUs are free"):
        reserve(data_parallel=4)

    class Process:
        """Stands for a rank or an engine; as a local class it goes to them whole, without this
        module, for which each would import torch."""

        def gpus(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    slots = (*first.placement.trainer, *first.placement.engines)
    actors = [
        ray.remote(Process).options(**actor_options(slot, device="cuda", env={})).remote()
        for slot in slots
    ]
    seen = ray.get([actor.gpus.remote() for actor in actors], timeout=HANG_S)
    order = [slot.gpus[0] for slot in first.placement.trainer]
    assert seen[:4] == order
    assert seen[4:] == [",".join(order[:2]), ",".join(order[2:])], "engines on the ranks' GPUs"

    first.release()
    third = reserve(data_parallel=4)
    assert {gpu for slot in third.placement.trainer for gpu in slot.gpus} == names[0]
    second.release()
    third.release()


@pytest.mark.usefixtures("eight_gpus")
def test_a_driver_without_gpus_uses_those_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_cuda", lambda: False)
    joined = ClusterConfig(address="head:6379", device="cuda")
    assert run_device(joined) == "cuda"
    assert run_device(joined.model_copy(update={"device": "cpu"})) == "cpu"
    with pytest.raises(ValueError, match=r"'auto' .* no CUDA device here, but .* has 8 GPUs"):
        run_device(joined.model_copy(update={"device": "auto"}))


_DRIVER = """
import asyncio, sys, time
from herl_megatron.cluster.session import ray_session
from herl_megatron.config.schema import ClusterConfig
from herl_megatron.weight_sync.bucket_folder import BucketFolder

async def main():
    with ray_session(ClusterConfig(address=sys.argv[1])):
        print(BucketFolder("joined").folder, flush=True)
        time.sleep(600)

asyncio.run(main())
"""


@pytest.mark.usefixtures("eight_gpus")
def test_a_killed_driver_leaves_no_files_where_it_joined() -> None:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", _DRIVER, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        folder = Path(driver.stdout.readline().strip())
        assert folder.is_dir() and folder.name.startswith("herl-weights-joined-")
        driver.kill()
    end = time.monotonic() + 60
    while folder.exists():
        assert time.monotonic() < end, f"{folder} is left"
        time.sleep(0.1)


def test_what_a_cluster_lacks() -> None:
    two = [Node("a", "10.0.0.1", ("0", "1")), Node("b", "10.0.0.2", ("0",))]
    assert missing(two, nodes=2, gpus_per_node=1) == ""
    assert missing(two, nodes=3, gpus_per_node=1) == "2 of 3 nodes are there: 10.0.0.1, 10.0.0.2"
    assert missing(two, nodes=2, gpus_per_node=2) == (
        "2 GPUs are expected on each node, but 10.0.0.2 has 1"
    )
