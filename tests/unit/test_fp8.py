"""FP8 recipes: which GPU, CUDA and Transformer Engine run them, and which models are fit for them.

Expected values are those of Transformer Engine's own checks (`check_fp8_support`,
`check_mxfp8_support`, `check_fp8_block_scaling_support`) for real GPUs, and Megatron-Core's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from megatron.core.enums import Fp8Recipe
from megatron.core.fp8_utils import get_fp8_align_size, is_first_last_bf16_layer

from herl_megatron.batching.shards import length_multiple
from herl_megatron.config.load import load_config
from herl_megatron.config.machine import Machine
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.config.validate import rule_problems
from herl_megatron.fp8 import RECIPES, RecipeName, available, shape_problems, unsupported
from herl_megatron.megatron.transformer_config import transformer_config
from herl_megatron.models.hf_config import read_architecture

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "configs/shapes"
A100, L40, H100, B200, RTX5090 = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)


@pytest.mark.parametrize(
    ("capability", "cuda", "recipes"),
    [
        (A100, (13, 0), ()),
        (L40, (12, 0), ()),
        (L40, (12, 1), ("delayed", "tensorwise")),
        (H100, (12, 8), ("delayed", "tensorwise")),
        (H100, (12, 9), ("delayed", "tensorwise", "blockwise")),
        (H100, (13, 0), ("delayed", "tensorwise", "blockwise")),
        (B200, (13, 0), ("delayed", "tensorwise", "blockwise", "mxfp8")),
        (RTX5090, (13, 0), ("delayed", "tensorwise", "blockwise")),
    ],
)
def test_recipes_of_real_gpus(
    capability: tuple[int, int], cuda: tuple[int, int], recipes: tuple[str, ...]
) -> None:
    assert available(capability=capability, cuda=cuda) == recipes
    for name in RECIPES:
        reason = unsupported(name, gpu="it", capability=capability, cuda=cuda, engine=(2, 11))
        assert (reason is None) == (name in recipes), reason


@pytest.mark.parametrize(
    ("name", "capability", "cuda", "engine", "parts"),
    [
        ("mxfp8", H100, (13, 0), (2, 11), ("(10, 0)", "(9, 0)", "blockwise")),
        ("mxfp8", RTX5090, (13, 0), (2, 11), ("(12, 0)", "above")),
        ("blockwise", H100, (12, 8), (2, 11), ("CUDA 12.9", "12.8", "tensorwise")),
        ("delayed", A100, (13, 0), (2, 11), ("(8, 9)", "no FP8 recipe", "null")),
        ("delayed", H100, (13, 0), None, ("not installed", "null")),
        ("delayed", H100, (13, 0), (2, 8), ("2.8", ">=2.9,<2.12")),
        ("delayed", H100, (13, 0), (2, 12), ("2.12", ">=2.9,<2.12")),
    ],
)
def test_the_reason_names_both_sides_and_what_to_do(
    name: str,
    capability: tuple[int, int],
    cuda: tuple[int, int],
    engine: tuple[int, int] | None,
    parts: tuple[str, ...],
) -> None:
    reason = unsupported(name, gpu="a GPU", capability=capability, cuda=cuda, engine=engine)
    assert reason
    assert [part for part in (f"megatron.fp8 is '{name}'", *parts) if part not in reason] == []


def test_every_recipe_is_megatrons_and_aligned_at_least_as_it_asks() -> None:
    assert set(RECIPES) == set(get_args(RecipeName)) == {r.value for r in Fp8Recipe} - {"custom"}
    for name, recipe in RECIPES.items():
        assert recipe.multiple % get_fp8_align_size(Fp8Recipe(name)) == 0


def problems(
    model: str, name: str, *, tp: int = 1, etp: int | None = None, pp: int = 1, **more: int
) -> list[str]:
    shape: dict[str, Any] = json.loads((MODELS / f"{model}.json").read_text())
    options = {"bf16_layers": 0, "min_hidden": 2048, **more}
    return list(
        shape_problems(
            name,
            shape,
            tensor_parallel=tp,
            expert_tensor_parallel=etp or tp,
            pipeline_parallel=pp,
            **options,
        )
    )


def test_models_that_are_large_enough_pass() -> None:
    for model in ("Qwen2.5-7B-Instruct", "Qwen2.5-72B-Instruct", "Qwen3-235B-A22B"):
        for name in RECIPES:
            assert problems(model, name, tp=4) == []


def test_a_small_model_is_refused_until_the_limit_is_lowered() -> None:
    (problem,) = problems("Qwen3-4B-Instruct-2507", "tensorwise", min_hidden=2561)
    assert "hidden_size is 2560" in problem
    assert "fp8_min_hidden 2561" in problem
    assert problems("Qwen3-4B-Instruct-2507", "tensorwise", min_hidden=2560) == []


def test_tensor_parallel_must_leave_whole_blocks() -> None:
    """Qwen2.5-7B: MLP 18944 = 2^9 * 37, so TP 32 leaves 592 = 16 * 37, and TP 64 leaves 296; the
    query heads, 28 * 128 = 3584 = 2^9 * 7, leave 112 = 16 * 7 and 56."""
    sizes = {
        tp: [part for part in ("intermediate_size is 592", "head_dim is 112") if part in text]
        for tp, text in ((tp, "\n".join(problems("Qwen2.5-7B-Instruct", "mxfp8", tp=tp)))
                         for tp in (16, 32))
    }  # fmt: skip
    assert sizes == {16: [], 32: ["intermediate_size is 592", "head_dim is 112"]}


def test_experts_are_cut_by_their_own_tensor_parallel() -> None:
    """Qwen3-30B-A3B's experts are 768 = 2^8 * 3 wide: 16 ranks leave 48, 32 leave 24."""
    assert problems("Qwen3-30B-A3B", "tensorwise", tp=2, etp=16) == []
    (problem,) = problems("Qwen3-30B-A3B", "tensorwise", tp=2, etp=32)
    assert "moe_intermediate_size is 24 on each of 32 ETP ranks" in problem
    assert "intermediate_size" not in "\n".join(problems("Qwen2.5-7B-Instruct", "delayed", tp=32))
    assert "intermediate_size is 296" in "\n".join(
        problems("Qwen2.5-7B-Instruct", "delayed", tp=64)
    )


def test_bf16_layers_fit_in_a_pipeline_stage() -> None:
    """28 layers on 4 stages are 7 to a stage."""
    assert problems("Qwen2.5-7B-Instruct", "tensorwise", pp=4, bf16_layers=7) == []
    (problem,) = problems("Qwen2.5-7B-Instruct", "tensorwise", pp=4, bf16_layers=8)
    assert "fp8_bf16_layers is 8" in problem
    assert "7 layers" in problem


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("megatron.fp8=tensorwise", "megatron.fp8_bf16_layers=2"), ()),
        (("megatron.fp8_bf16_layers=2",), ("fp8_bf16_layers is 2", "null")),
        (("megatron.fp8=delayed", "megatron.fp8_bf16_layers=2"), ("'delayed'", "0")),
        (("megatron.fp8=tensorwise", "megatron.precision=fp32"), ("'fp32'", "bf16")),
        (("megatron.fp8=delayed", "megatron.reference=host", "algorithm.kl_coef=0"), ()),
        (
            ("megatron.fp8=delayed", "megatron.reference=host", "algorithm.kl_coef=0.1"),
            ("'host'", "'delayed'", "resident"),
        ),
        (("rollout.quantization=fp8",), ("'fp8'", "mismatch_weight")),
        (("rollout.quantization=fp8", "algorithm.mismatch_weight=true"), ()),
        (
            ("rollout.quantization=fp8", "algorithm.mismatch_weight=true", "rollout.dtype=fp32"),
            ("'fp8'", "'fp32'", "bf16"),
        ),
    ],
)
def test_rules_between_keys(overrides: tuple[str, ...], parts: tuple[str, ...]) -> None:
    config = load_config(ROOT / "configs/qwen2.5_7b_if_8gpu.yaml", overrides)
    machine = Machine(gpus=8, transformer_engine=True)
    found = list(rule_problems(config, purpose="train", machine=machine))
    assert len(found) == bool(parts), found
    for part in parts:
        assert part in found[0]


def test_megatron_gets_the_recipe_and_leaves_the_ends_in_bf16() -> None:
    architecture = read_architecture(str(MODELS / "Qwen2.5-7B-Instruct.json"))
    for name, recipe in RECIPES.items():
        layers = 0 if name == "delayed" else 2
        given = MegatronConfig.model_validate({"fp8": name, "fp8_bf16_layers": layers})
        config = transformer_config(architecture, given, transformer_engine=False)
        assert (config.fp8, config.fp8_recipe, config.fp8_param) == (recipe.formats, name, False)
        in_bf16 = [n for n in range(28) if is_first_last_bf16_layer(config, n)]
        assert in_bf16 == ([] if name == "delayed" else [0, 1, 26, 27])
        history = (config.fp8_amax_history_len, config.fp8_amax_compute_algo)
        assert name != "delayed" or history == (1024, "max")


@pytest.mark.parametrize(
    ("layout", "multiple"),
    [
        ({}, 1),
        ({"fp8": "delayed"}, 16),
        ({"fp8": "blockwise"}, 32),
        ({"fp8": "mxfp8", "tensor_parallel": 4}, 32),
        ({"fp8": "tensorwise", "tensor_parallel": 4, "sequence_parallel": True}, 64),
        ({"tensor_parallel": 4, "sequence_parallel": True}, 4),
    ],
)
def test_rows_are_padded_so_that_every_rank_has_whole_blocks(
    layout: dict[str, Any], multiple: int
) -> None:
    assert length_multiple(MegatronConfig(**layout)) == multiple
