"""Parameters as Transformer Engine's layers name them: the same model, loaded and exported alike.

The names and shapes are those of the model that Megatron-Core 0.16.1 builds from Transformer Engine
2.11 (`TEGroupedMLP`), read from it once on a machine that has both. Here they stand on plain
modules, since the package needs a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from herl_megatron.config.schema import MegatronConfig
from herl_megatron.models.hf_folder import finish_export, start_export
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.test_model_layouts import check_export

pytestmark = pytest.mark.distributed

EP2 = dict(data_parallel=2, expert_parallel=2)
ATTENTION = {
    "self_attention.linear_proj.weight": (64, 64),
    "self_attention.linear_qkv.layer_norm_weight": (64,),
    "self_attention.linear_qkv.weight": (128, 64),
    "self_attention.q_layernorm.weight": (16,),
    "self_attention.k_layernorm.weight": (16,),
}
EXPERTS = {  # of one rank of EP 2: two of four
    "pre_mlp_layernorm.weight": (64,),
    "mlp.router.weight": (4, 64),
    "mlp.experts.linear_fc1.weight0": (64, 64),
    "mlp.experts.linear_fc1.weight1": (64, 64),
    "mlp.experts.linear_fc2.weight0": (64, 32),
    "mlp.experts.linear_fc2.weight1": (64, 32),
}
DENSE = {
    "mlp.linear_fc1.layer_norm_weight": (64,),
    "mlp.linear_fc1.weight": (192, 64),
    "mlp.linear_fc2.weight": (64, 96),
}
ENDS = {
    "embedding.word_embeddings.weight": (640, 64),
    "decoder.final_layernorm.weight": (64,),
    "output_layer.weight": (640, 64),
}


def engine_chunk() -> torch.nn.Module:
    """The tiny Qwen3-MoE on one rank of EP 2: layer 1 is dense."""
    shapes = dict(ENDS)
    for layer in range(4):
        parts = ATTENTION | (DENSE if layer == 1 else EXPERTS)
        shapes |= {f"decoder.layers.{layer}.{name}": shape for name, shape in parts.items()}
    root = torch.nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, torch.nn.Parameter(torch.full(shape, float("nan"))))
    for index in range(4):
        numbered: Any = root.get_submodule(f"decoder.layers.{index}")
        numbered.layer_number = index + 1
    return root


def work(rank: int, world_size: int, init_method: str, folder: str, staging: str) -> dict[str, Any]:
    """Load and export the chunk; the names and shapes of it and of the model built without TE."""
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.fp8_state import module_state
    from herl_megatron.megatron.load_weights import load_hf_weights
    from herl_megatron.megatron.model import build_model
    from herl_megatron.megatron.parallel import init_parallel, shutdown_parallel
    from herl_megatron.models.hf_config import read_architecture
    from herl_megatron.models.local_parameters import local_parameters
    from herl_megatron.weight_sync.export import write_stage
    from herl_megatron.weight_sync.source import WeightSource

    config = MegatronConfig.model_validate({"precision": "fp32", "timeout_s": 60, **EP2})
    groups = init_parallel(
        config, rank=rank, world_size=world_size, init_method=init_method,
        device=choose_device("cpu"), seed=0,
    )  # fmt: skip
    architecture = read_architecture(folder)
    chunks = [engine_chunk()]
    load_hf_weights(chunks, folder, architecture, groups)
    source = WeightSource(chunks, architecture, config, bucket_bytes=60_000, groups=groups)
    result: dict[str, Any] = {"written": None}
    if source.takes_part:
        result["written"] = write_stage(source, staging)
    built = build_model(architecture, config, groups)
    load_hf_weights(built, folder, architecture, groups)
    found, wanted = (local_parameters(c, architecture, groups) for c in (chunks, built))
    result["same_names"] = sorted(found) == sorted(wanted)
    result["stored"] = {item.key for item in module_state(built[0], history=False).values()}
    result["same_bits"] = all(torch.equal(found[name], wanted[name]) for name in wanted)
    shutdown_parallel()
    return result


def test_grouped_experts_load_and_export(tmp_path: Path) -> None:
    """Every rank's experts come from the right tensors and go back to them bit by bit. And what is
    built without Transformer Engine has its names in checkpoints, one tensor for all experts."""
    folder = tmp_path / "hf"
    tiny_models.save("qwen3_moe", folder)
    staging = start_export(tmp_path / "out")
    answers = run_ranks(work, 2, str(folder), str(staging))
    assert all(answer["same_names"] and answer["same_bits"] for answer in answers)
    experts = {f"mlp.experts.experts.linear_fc{number}.weight" for number in (1, 2)}
    sparse = {name for name in EXPERTS if "experts" not in name} | experts
    of_layers = {
        f"decoder.layers.{layer}.{name}"
        for layer in range(4)
        for name in (*ATTENTION, *(DENSE if layer == 1 else sparse))
    }
    assert all(answer["stored"] == of_layers | set(ENDS) for answer in answers)
    written = [answer["written"] for answer in answers if answer["written"] is not None]
    finish_export(staging, tmp_path / "out", stages=written, source=folder)
    check_export(folder, tmp_path / "out")
