"""What a mixture of experts asks of a configuration is refused by name before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from herl_megatron.config.schema import Config, MegatronConfig, ModelConfig
from herl_megatron.config.validate import shape_problems

SHAPE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}


def problems(layout: dict[str, Any], **changes: Any) -> list[str]:
    config = Config(model=ModelConfig(path="moe"), megatron=MegatronConfig(**layout))
    found = shape_problems(config, SHAPE | changes, purpose="sft", device="cpu")
    return list(found)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        dict(expert_parallel=8, data_parallel=8),
        dict(expert_parallel=4, data_parallel=4, tensor_parallel=2, sequence_parallel=True),
        dict(expert_parallel=2, data_parallel=4, pipeline_parallel=2, virtual_pipeline=2),
        dict(tensor_parallel=2, sequence_parallel=True, expert_tensor_parallel=1),
    ],
    ids=str,
)
def test_layouts_that_train(layout: dict[str, Any]) -> None:
    assert problems(layout) == []


@pytest.mark.parametrize(
    ("layout", "changes", "said"),
    [
        (dict(expert_parallel=3, data_parallel=3), {}, ("expert_parallel 3", "8 experts")),
        (dict(tensor_parallel=2), {}, ("tensor_parallel is 2", "sequence_parallel=true")),
        (dict(tensor_parallel=2, sequence_parallel=True), {"moe_intermediate_size": 33},
         ("megatron.tensor_parallel 2", "moe_intermediate_size 33")),
        (dict(data_parallel=3, expert_tensor_parallel=3), {},
         ("expert_tensor_parallel 3", "moe_intermediate_size 32")),
        (dict(expert_tensor_parallel=1), {"model_type": "qwen3", "num_experts": None},
         ("expert_tensor_parallel is 1", "qwen3 has no experts", "null")),
        ({}, {"num_experts_per_tok": 9}, ("num_experts_per_tok 9", "8 experts")),
        ({}, {"output_router_logits": True},
         ("output_router_logits is true", "router_aux_loss_coef 0.001", "false")),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_is_refused(
    layout: dict[str, Any], changes: dict[str, Any], said: tuple[str, ...]
) -> None:
    (problem,) = problems(layout, **changes)
    assert all(part in problem for part in said), problem


def test_an_engine_alone_does_not_care() -> None:
    config = Config(model=ModelConfig(path="moe"), megatron=MegatronConfig(expert_parallel=3))
    shape = SHAPE | {"output_router_logits": True}
    assert not list(shape_problems(config, shape, purpose="eval", device="cpu"))
