"""Slots of ranks and engines on made-up nodes; expected places are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from herl_megatron.cluster import placement
from herl_megatron.cluster.placement import (
    Node,
    Placement,
    Slot,
    actor_options,
    bucket_writers,
    demand,
    device_bucket_writers,
    in_order,
    network_environment,
    ranks_beside_engines,
    trainer_environment,
)
from herl_megatron.config.load import load_config
from herl_megatron.config.schema import Config
from herl_megatron.types import DeviceKind

CONFIGS = Path(__file__).parents[3] / "configs"


def nodes(count: int, gpus: int = 8) -> list[Node]:
    names = tuple(str(index) for index in range(gpus))
    return [Node(f"id{index}", f"10.0.0.{index + 1}", names) for index in range(count)]


def config(*, replicas: int = 1, engine_tp: int = 1, **megatron: Any) -> Config:
    rollout = {"replicas": replicas, "tensor_parallel": engine_tp}
    return Config.model_validate(
        {"model": {"path": "unused"}, "rollout": rollout, "megatron": megatron}
    )


def place(
    wanted: Config,
    nodes: list[Node],
    *,
    device: DeviceKind,
    trains: bool = True,
    samples: bool = True,
) -> Placement:
    asked = demand(wanted.megatron if trains else None, wanted.rollout if samples else None)
    return placement.place(asked, nodes, device=device)


def where(slots: tuple[Slot, ...]) -> list[tuple[str, str]]:
    return [(slot.node_id, ",".join(slot.gpus)) for slot in slots]


def test_72b_on_8_nodes() -> None:
    """64 ranks of TP 8: a TP group is a node, as is an engine of 8 GPUs."""
    placed = place(load_config(CONFIGS / "qwen2.5_72b_if_8x8gpu.yaml", []), nodes(8), device="cuda")
    assert len(placed.trainer) == 64
    # Ranks 0 to 7 are the first TP group; rank 32 is the first of the fifth.
    assert where(placed.trainer[:9]) == [*[("id0", str(g)) for g in range(8)], ("id1", "0")]
    assert where(placed.trainer[32:33]) == [("id4", "0")]
    assert where(placed.engines) == [(f"id{n}", "0,1,2,3,4,5,6,7") for n in range(8)]


def test_30b_a3b_on_4_nodes() -> None:
    """32 ranks and 8 engines of 4 GPUs: two engines to a node."""
    placed = place(
        load_config(CONFIGS / "qwen3_30b_a3b_if_4x8gpu.yaml", []), nodes(4), device="cuda"
    )
    assert where(placed.trainer) == [(f"id{r // 8}", str(r % 8)) for r in range(32)]
    halves = ("0,1,2,3", "4,5,6,7")
    assert where(placed.engines) == [(f"id{n}", gpus) for n in range(4) for gpus in halves]


def test_235b_on_32_nodes() -> None:
    """256 ranks of TP 4: two TP groups to a node; the second of two stages from node 16 on."""
    path = CONFIGS / "qwen3_235b_a22b_fp8_medical_32x8gpu.yaml"
    placed = place(load_config(path, []), nodes(32), device="cuda")
    assert len(placed.trainer) == 256 and len(placed.engines) == 32
    assert where(placed.trainer[12:13]) == [("id1", "4")]
    assert where(placed.trainer[128:129]) == [("id16", "0")]
    assert where(placed.engines[31:]) == [("id31", "0,1,2,3,4,5,6,7")]


def test_engines_are_on_gpus_of_trainer_ranks_and_spread_over_their_nodes() -> None:
    wanted = config(replicas=3, engine_tp=2, tensor_parallel=4, data_parallel=3)  # 12 ranks
    placed = place(wanted, nodes(3), device="cuda")
    assert where(placed.trainer[7:9]) == [("id0", "7"), ("id1", "0")]
    # The third node has no rank; of three engines the first node gets two.
    assert where(placed.engines) == [("id0", "0,1"), ("id0", "2,3"), ("id1", "0,1")]


def test_one_node_is_enough_where_it_is() -> None:
    """Two GPUs are taken on one node although another comes first in the order with one."""
    uneven = [Node("small", "10.0.0.1", ("0",)), Node("large", "10.0.0.2", ("GPU-a", "GPU-b"))]
    placed = place(config(tensor_parallel=2), uneven, device="cuda")
    assert where(placed.trainer) == [("large", "GPU-a"), ("large", "GPU-b")]
    assert where(placed.engines) == [("large", "GPU-a")]


def test_on_the_cpu_tp_groups_and_engines_are_spread_in_blocks() -> None:
    placed = place(
        config(replicas=3, tensor_parallel=2, data_parallel=3), nodes(2, gpus=0), device="cpu"
    )
    ids = [slot.node_id for slot in placed.trainer]
    assert ids == ["id0", "id0", "id0", "id0", "id1", "id1"]
    assert [slot.node_id for slot in placed.engines] == ["id0", "id0", "id1"]


def test_on_the_cpu_engines_stay_where_ranks_bring_them_weights() -> None:
    wanted = config(replicas=4, tensor_parallel=2)
    training = place(wanted, nodes(2, gpus=0), device="cpu")
    assert {slot.node_id for slot in training.engines} == {"id0"}
    evaluation = place(wanted, nodes(2, gpus=0), device="cpu", trains=False)
    assert [slot.node_id for slot in evaluation.engines] == ["id0", "id0", "id1", "id1"]
    assert evaluation.trainer == ()
    assert place(wanted, nodes(2, gpus=0), device="cpu", samples=False).engines == ()


def test_nodes_come_in_the_order_of_their_addresses_after_the_drivers() -> None:
    given = [Node("a", "10.0.0.10"), Node("b", "10.0.0.9"), Node("c", "10.0.0.11"), Node("d", "h1")]
    assert [node.id for node in in_order(given, driver="c")] == ["c", "b", "a", "d"]


@pytest.mark.parametrize(
    ("wanted", "have", "message"),
    [
        (config(data_parallel=17), nodes(2), r"needs 17 GPUs.*has 16 \(10\.0\.0\.1: 8, "),
        (config(data_parallel=2), nodes(1, gpus=0), r"needs 2 GPUs, but the Ray cluster has 0"),
        (config(tensor_parallel=3, data_parallel=4), nodes(2), r"tensor_parallel 3 .* 8 GPUs"),
        (config(replicas=2, engine_tp=16, data_parallel=32), nodes(4), r"is 16, but a node has 8"),
        (config(replicas=3, engine_tp=8, data_parallel=16), nodes(3),
         r"3 engines .* need 3 nodes of 8 GPUs, .* trainer's 16 ranks are on 2"),
        # Two engines of 3 GPUs to a node of 8: four nodes hold 8, not the 10 that 32 GPUs would.
        (config(replicas=9, engine_tp=3, data_parallel=32), nodes(4), r"need 5 nodes .*are 4"),
    ],
    ids=["too few", "none", "tp", "engine tp", "engines off the ranks' nodes", "engines"],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_numbers(
    wanted: Config, have: list[Node], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        place(wanted, have, device="cuda")


def test_unequal_nodes_are_refused_by_address() -> None:
    uneven = [*nodes(1), Node("x", "10.0.0.9", ("0", "1", "2", "3"))]
    with pytest.raises(ValueError, match=r"10\.0\.0\.1: 8, 10\.0\.0\.9: 4"):
        place(config(data_parallel=12), uneven, device="cuda")


def test_a_process_sees_its_own_gpus_and_asks_ray_for_none() -> None:
    node_id = "ab" * 28  # Ray accepts nothing else
    options = actor_options(Slot(node_id, "10.0.0.1", ("2", "3")), device="cuda", env={"A": "1"})
    assert options["num_gpus"] == 0
    variables = options["runtime_env"]["env_vars"]
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,3" and variables["A"] == "1"
    assert options["scheduling_strategy"].node_id == node_id
    on_cpu = actor_options(Slot(node_id, "10.0.0.1"), device="cpu", env={})
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu["runtime_env"]["env_vars"]


def test_one_rank_per_machine_writes_a_bucket_the_sender_first() -> None:
    """Four ranks on two machines and two stages: rank 0 gathers stage 0, rank 2 stage 1."""
    assert bucket_writers([0, 2], ["a", "a", "b", "b"], ["a", "b"]) == ((0, 2), (2, 1))
    # Stage 1 is sent to the second rank of machine a: ranks share the work by stage.
    assert bucket_writers([0, 2], ["a"] * 4, ["a"]) == ((0,), (2,))
    assert bucket_writers([0], ["a", "b", "c"], ["c", "c"]) == ((0, 2),)
    assert bucket_writers([0, 1], ["a", "b"], []) == ((0,), (1,))


def test_buckets_go_to_the_gpus_of_engines_only() -> None:
    """8 ranks on 2 nodes of 4 GPUs, an engine of 2 GPUs on each: GPUs 0 and 1 of both nodes."""
    layout = config(replicas=2, engine_tp=2, data_parallel=4, pipeline_parallel=2)
    placed = place(layout, nodes(2, gpus=4), device="cuda")
    assert ranks_beside_engines(placed) == (0, 1, 4, 5)
    layout = config(replicas=3, engine_tp=2, data_parallel=4, pipeline_parallel=2)
    placed = place(layout, nodes(2, gpus=4), device="cuda")
    assert ranks_beside_engines(placed) == (0, 1, 2, 3, 4, 5)
    # Stage 1 is gathered on rank 4, which is beside an engine itself; it comes first, and once.
    assert device_bucket_writers((0, 4), (0, 1, 2, 3, 4, 5)) == (
        (0, 1, 2, 3, 4, 5),
        (4, 0, 1, 2, 3, 5),
    )
    alone = place(config(replicas=4, data_parallel=2), nodes(1, gpus=4), device="cuda")
    assert ranks_beside_engines(alone) is None  # engines 2 and 3 have GPUs without a rank
    on_cpu = place(config(replicas=1, data_parallel=2), nodes(1, gpus=0), device="cpu")
    assert ranks_beside_engines(on_cpu) is None


def test_the_trainer_compiles_nothing_on_the_cpu() -> None:
    on_cpu = trainer_environment(3, device="cpu")
    assert (on_cpu["TORCH_COMPILE_DISABLE"], on_cpu["OMP_NUM_THREADS"]) == ("1", "3")
    assert "TORCH_COMPILE_DISABLE" not in trainer_environment(3, device="cuda")


def test_network_settings_of_the_driver_are_passed_on() -> None:
    given = {"NCCL_IB_HCA": "mlx5", "GLOO_SOCKET_IFNAME": "ib0", "HF_TOKEN": "secret", "PATH": "p"}
    assert network_environment(given) == {"NCCL_IB_HCA": "mlx5", "GLOO_SOCKET_IFNAME": "ib0"}
