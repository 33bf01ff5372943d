"""Transformer Engine's extra state in checkpoints, by modules that own such a state on the CPU.

What its own modules put there was read in 2.11's `module/base.py`; that they take it back on a GPU
is not tested anywhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.test_checkpoint import case_of
from tests.distributed.train_case import Case, start_rank

pytestmark = pytest.mark.distributed

RECIPES = ("delayed", "blockwise", None)
STAGES = dict(pipeline_parallel=2)


def histories(
    rank: int, world_size: int, init_method: str, case: Case, folder: str, save: bool
) -> dict[str, dict[int, int]]:
    """Every norm has a state. Save one checkpoint by recipe, with each layer's number plus 1 as the
    state; or load every one as every recipe: the states then, by layer, 0 where none came."""
    import herl_megatron.megatron.model as model
    from herl_megatron.megatron.checkpoint import load_checkpoint, save_checkpoint
    from herl_megatron.megatron.norms import RMSNorm
    from herl_megatron.megatron.parallel import shutdown_parallel

    class WithHistory(RMSNorm):
        history = 0

        def get_extra_state(self) -> torch.Tensor:
            return torch.tensor([self.history], dtype=torch.uint8)

        def set_extra_state(self, state: torch.Tensor) -> None:
            self.history = int(state)

    patched: Any = model
    patched.RMSNorm = WithHistory
    _, groups, actor = start_rank(rank, world_size, init_method, case)
    layers = {layer.layer_number: layer for c in actor.chunks for layer in c.decoder.layers}
    config = actor.chunks[0].config

    def become(recipe: str | None) -> None:
        config.fp8, config.fp8_recipe = (recipe and "hybrid"), (recipe or "delayed")

    found: dict[str, dict[int, int]] = {}
    for number, layer in layers.items():
        layer.input_layernorm.history = number if save else 0
    for recipe in RECIPES:
        if save:
            become(recipe)
            save_checkpoint(actor, f"{folder}/{recipe}", groups=groups)
            continue
        for later in RECIPES:
            become(later)
            load_checkpoint(actor, f"{folder}/{recipe}", groups=groups)
            found[f"{recipe} to {later}"] = {
                n: x.input_layernorm.history for n, x in layers.items()
            }
            for layer in layers.values():
                layer.input_layernorm.history = 0
    shutdown_parallel()
    return found


def test_only_the_history_of_delayed_scaling_is_kept(tmp_path: Path) -> None:
    """At another layout as well; and a run of any other recipe, or none, neither misses nor takes
    what it does not remember."""
    case = replace(case_of("qwen2", tmp_path / "hf"), steps=0)
    for recipe in RECIPES:
        (tmp_path / f"{recipe}").mkdir()
    run_ranks(histories, 2, case.on(**STAGES), str(tmp_path), True)
    names = {
        recipe: b"_extra_state" in (tmp_path / f"{recipe}" / ".metadata").read_bytes()
        for recipe in RECIPES
    }
    assert names == {"delayed": True, "blockwise": False, None: False}
    (found,) = run_ranks(histories, 1, case, str(tmp_path), False)
    assert found.pop("delayed to delayed") == {1: 1, 2: 2, 3: 3, 4: 4}
    assert len(found) == 8
    assert all(set(history.values()) == {0} for history in found.values()), found
