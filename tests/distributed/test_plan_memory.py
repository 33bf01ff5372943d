"""What the planner predicts is what real runs allocate: weights, gradients, optimizer, activations.

A prediction comes from a process that builds one rank on the meta device in a simulated world; the
measurement from real ranks over gloo, after one training step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.architecture import Architecture
from herl_megatron.models.known_families import architecture_from_config
from herl_megatron.plan.activations import ActivationModel, MicroBatchShape
from herl_megatron.types import TrainRow
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.train_case import Case, megatron_config, shards_of, start_rank

pytestmark = pytest.mark.distributed

HALF, ROW_TOKENS = 16, 32
"""Rows are of one length, so that every micro-batch is as large as the budget allows."""
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "TP2 bf16, untied": ("qwen3", dict(tensor_parallel=2, precision="bf16")),
    "TP2 SP bf16, tied": (
        "qwen2_tied",
        dict(tensor_parallel=2, sequence_parallel=True, precision="bf16"),
    ),
    "DP1 bf16, packed": ("qwen2_tied", dict(precision="bf16", packing=True)),
    "PP2 fp32, tied": ("llama_tied", dict(pipeline_parallel=2)),
    "PP2 bf16, five layers": ("qwen3_five", dict(pipeline_parallel=2, precision="bf16")),
    "TP2 SP bf16, output norms": (
        "glm4",
        dict(tensor_parallel=2, sequence_parallel=True, precision="bf16"),
    ),
    "PP2 bf16, norms of 1 + w, packed": (
        "gemma3_text",
        dict(pipeline_parallel=2, precision="bf16", packing=True),
    ),
    "PP2 VPP2 bf16": (
        "qwen3",
        dict(pipeline_parallel=2, virtual_pipeline=2, precision="bf16"),
    ),
    "DP2 bf16": ("qwen2_tied", dict(data_parallel=2, precision="bf16")),
    "DP2 fp32": ("qwen3", dict(data_parallel=2)),
    "DP2 bf16, optimizer not sharded": (
        "qwen3",
        dict(data_parallel=2, precision="bf16", distributed_optimizer=False),
    ),
    "DP2 EP2 bf16, experts": (
        "qwen3_moe",
        dict(data_parallel=2, expert_parallel=2, precision="bf16"),
    ),
    "TP2 SP PP2 bf16, recompute": (
        "qwen2_tied",
        dict(
            tensor_parallel=2, sequence_parallel=True, pipeline_parallel=2,
            precision="bf16", recompute="full",
        ),
    ),
    "CP2 bf16": ("qwen3", dict(context_parallel=2, precision="bf16")),
    "TP2 SP CP2 bf16, packed": (
        "qwen2_tied",
        dict(
            tensor_parallel=2, sequence_parallel=True, context_parallel=2,
            precision="bf16", packing=True,
        ),
    ),
}  # fmt: skip


def same_rows(count: int) -> tuple[TrainRow, ...]:
    """Rows of `HALF` context and `HALF` response tokens."""
    rng = np.random.default_rng(0)
    return tuple(
        TrainRow(
            prompt_id=f"p{index}",
            context_token_ids=rng.integers(0, tiny_models.VOCAB, HALF).astype(np.int32),
            response_token_ids=rng.integers(0, tiny_models.VOCAB, HALF).astype(np.int32),
            rollout_log_probs=np.zeros(HALF, np.float32),
            reward=0.0,
            advantage=float(rng.normal()),
            off_policy=False,
            weight=1.0,
        )
        for index in range(count)
    )


class SavedTensors:
    """Bytes of the storages that autograd holds for the backward pass, now and at most.

    A storage counts once however often it is saved; weights, which live anyway, do not count.
    """

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.users: dict[int, int] = {}
        self.now = self.peak = 0

    def keep(self, tensor: torch.Tensor) -> _Kept:
        """The pack hook."""
        return _Kept(tensor, self)

    def change(self, tensor: torch.Tensor, users: int) -> None:
        """One user of the tensor's storage more or less."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.weights:
            return
        before = self.users.get(place, 0)
        self.users[place] = before + users
        if not before or not self.users[place]:
            self.now += users * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Kept:
    def __init__(self, tensor: torch.Tensor, saved: SavedTensors) -> None:
        self.tensor, self.saved = tensor, saved
        saved.change(tensor, 1)

    def __del__(self) -> None:
        self.saved.change(self.tensor, -1)


def measure(rank: int, world_size: int, init_method: str, case: Case) -> dict[str, int]:
    """One rank of a real step: what it allocated."""
    from herl_megatron.megatron.parallel import shutdown_parallel

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    shard = shards_of(case, megatron)[groups.dp.rank]
    parameters = [p for chunk in actor.chunks for p in chunk.parameters()]
    saved = SavedTensors(parameters)
    with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda kept: kept.tensor):
        actor.train_step(shard)
    moments = [
        value
        for one in actor.optimizer.megatron.chained_optimizers
        for state in one.optimizer.state.values()
        for name, value in state.items()
        if name in ("exp_avg", "exp_avg_sq")
    ]
    result = {
        "pp_rank": groups.pp.rank,
        "parameters": sum(p.numel() for p in parameters),
        "weight_bytes": storage_bytes(parameters),
        "gradient_bytes": storage_bytes([p.main_grad for p in parameters]),
        "main_weight_bytes": main_weight_bytes(actor, parameters),
        "moment_bytes": storage_bytes(moments),
        "activation_bytes": saved.peak,
        "micro_batches": len(shard.micro_batches),
    }
    shutdown_parallel()
    return result


def storage_bytes(tensors: list[Any]) -> int:
    """Bytes of the distinct storages behind these tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main_weight_bytes(actor: Any, parameters: list[Any]) -> int:
    """Of the fp32 copies that the optimizer updates in place of bf16 parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    updated = [
        p
        for one in actor.optimizer.megatron.chained_optimizers
        for group in one.optimizer.param_groups
        for p in group["params"]
    ]
    return storage_bytes([p for p in updated if p.untyped_storage().data_ptr() not in own])


def predict(rank: int, world_size: int, init_method: str) -> dict[str, Any]:
    """Every rank of every layout, built without memory in this one process."""
    from herl_megatron.megatron.meta import rank_bytes

    return {
        key: rank_bytes(architecture(name), config(layout), range(config(layout).world_size))
        for key, (name, layout) in LAYOUTS.items()
    }


def architecture(name: str) -> Architecture:
    """Of a tiny model."""
    return architecture_from_config(tiny_models.config(name).to_dict())


def config(layout: dict[str, Any]) -> MegatronConfig:
    """The layout's configuration, as `measure` runs it."""
    return megatron_config(Case("", (), None, layout=sized(layout)))


def sized(layout: dict[str, Any]) -> dict[str, Any]:
    """Micro-batches of eight rows."""
    return {"micro_batch_tokens": 8 * ROW_TOKENS, **layout}


@pytest.fixture(scope="module")
def predictions() -> dict[str, Any]:
    found: dict[str, Any] = run_ranks(predict, 1)[0]
    return found


@pytest.fixture(scope="module", params=LAYOUTS)
def measured(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """Name of a layout and what its ranks allocated."""
    name, layout = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp(name)
    tiny_models.save(name, Path(folder))
    case = Case(str(folder), same_rows(32), None, layout=sized(layout))
    return request.param, run_ranks(measure, config(layout).world_size, case)


def test_weights_gradients_and_optimizer_are_exact(
    measured: tuple[str, list[Any]], predictions: dict[str, Any]
) -> None:
    """To the byte, on every rank."""
    key, ranks = measured
    for plan, real in zip(predictions[key], ranks, strict=True):
        for field in (
            "pp_rank", "parameters", "weight_bytes", "gradient_bytes", "main_weight_bytes",
            "moment_bytes",
        ):  # fmt: skip
            assert getattr(plan, field) == real[field], (plan.rank, field)


def test_activations_are_within_15_percent(measured: tuple[str, list[Any]]) -> None:
    """At the peak of the whole schedule, on every rank."""
    key, ranks = measured
    name, layout = LAYOUTS[key]
    model = ActivationModel(architecture(name), config(layout), fused=False)
    shape = MicroBatchShape(8 * ROW_TOKENS, ROW_TOKENS, 8 * HALF)
    shape = shape.share(config(layout).context_parallel)
    for real in ranks:
        expected = model.peak_bytes(real["pp_rank"], shape, real["micro_batches"])
        assert expected == pytest.approx(real["activation_bytes"], rel=0.15)
