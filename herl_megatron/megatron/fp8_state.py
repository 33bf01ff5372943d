"""What Transformer Engine's layers keep beside weights, in checkpoints.

Every one of its modules has an `_extra_state`: empty without FP8, else the pickled recipe and, with
`megatron.fp8: delayed` alone, scales and the history of largest values. Megatron asks for each of
them when it loads, so that a checkpoint from the CPU, from another recipe or from a layer that
stayed in bf16 would not load, or would bring its recipe along. Here only the history of `delayed`
is written, and it is read by a run that is `delayed` too: all others compute their scales anew in
every pass and have nothing to remember. Without it (a bf16 run that goes on in FP8) `delayed`
starts as a new run does, with scales of 1.

The history has global names as weights have, one per layer and expert, so any layout finds it. Of a
layer that TP cuts the first rank's is written, which is everyone's: Transformer Engine reduces
largest values over the ranks of a stage (for experts, of those in the same place on each EP rank).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

# Of a grouped layer's experts the first has no number.
_EXTRA_STATE = re.compile(r"(^|\.)_extra_state\d*$")


def history_recipe(config: TransformerConfig) -> str | None:
    """The FP8 recipe, if it remembers something from pass to pass; for the checkpoint's record."""
    return "delayed" if config.fp8 and config.fp8_recipe == "delayed" else None


def module_state(module: torch.nn.Module, *, history: bool) -> dict[str, Any]:
    """Megatron's sharded state of a chunk, with `_extra_state` if `history`."""
    state: dict[str, Any] = module.sharded_state_dict()  # type: ignore[operator]
    if history:
        return state
    return {name: value for name, value in state.items() if not _EXTRA_STATE.search(name)}


def load_module_state(module: torch.nn.Module, state: dict[str, Any]) -> None:
    """Put a loaded state into a chunk; `_extra_state` may be left out, nothing else."""
    found = module.load_state_dict(state, strict=False)
    wrong = [name for name in found.missing_keys if not _EXTRA_STATE.search(name)]
    wrong += found.unexpected_keys
    assert not wrong, f"loaded state and module differ in {wrong[:5]}"
