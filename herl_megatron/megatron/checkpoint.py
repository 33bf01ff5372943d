"""Training state of all ranks to and from a folder, by Megatron's `dist_checkpointing`.

    save_checkpoint(actor, folder, groups=groups)      # collective; `folder` exists and is empty
    load_checkpoint(actor, folder, groups=groups)      # any TP x PP x DP

Saved are weights, Adam's moments and fp32 main weights, the number of optimizer steps taken and
every rank's random generators. Tensors carry global names and offsets, so
another layout reads the parts that it needs; generators come back only to an equal layout. What
FP8 adds is `fp8_state`'s to say.

Three of Megatron's ways are avoided. Its writer starts processes (`checkpoint_write`). Its
distributed optimizer gathers its state on every rank before it writes (`optimizer_shards`). And its
optimizers load Adam's step count wrongly with torch's AdamW (one tensor shared by all parameters,
or none at all): the count equals the optimizer steps done, so it is set from that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from herl_megatron.device import get_rng_state, set_rng_state
from herl_megatron.megatron.actor import MegatronActor
from herl_megatron.megatron.checkpoint_write import Background, CheckpointWrite
from herl_megatron.megatron.fp8_state import history_recipe, load_module_state, module_state
from herl_megatron.megatron.optimizer import Optimizer
from herl_megatron.megatron.optimizer_shards import state_shards
from herl_megatron.megatron.staging import StagingMemory
from herl_megatron.models.groups import Groups


def save_checkpoint(actor: MegatronActor, folder: str | Path, *, groups: Groups) -> None:
    """Write this rank's part; returns when all ranks have written theirs.

    Raises:
        OSError: a rank could not write (no space, no permission).
    """
    begin_save(actor, folder, groups=groups, staging=None).finish()


def begin_save(
    actor: MegatronActor, folder: str | Path, *, groups: Groups, staging: StagingMemory | None
) -> CheckpointWrite:
    """Copy this rank's part into `staging` and write it, both in the background. Collective.

    Training may go on at once; what writes to weights or optimizer state waits at the optimizer's
    gate until they are copied. `CheckpointWrite` says how to finish. The memory needed is that of
    the part, as large as its files.
    """
    actor.optimizer.gate.wait()  # of the save before, which may still be copying
    recipe = history_recipe(actor.chunks[0].config)
    state = _state(actor, groups, is_loading=False, stored=recipe)
    background = None
    if staging is not None:
        background = Background(staging, actor.optimizer.gate, actor.optimizer.tensors())
    return CheckpointWrite(state, str(folder), background=background)


def load_checkpoint(actor: MegatronActor, folder: str | Path, *, groups: Groups) -> None:
    """Replace this rank's weights, optimizer state and generators by the checkpoint's.

    Raises:
        CheckpointingException: the checkpoint is of another model.
        ValueError: its optimizer was the distributed one and this run's is not, or the other way
            round; their states have other names.
    """
    actor.optimizer.gate.wait()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        common = dist_checkpointing.load_common_state_dict(str(folder))
        _check_optimizer(actor.optimizer, common, folder)
        # A record from before FP8's history was kept apart has no such key.
        state = _state(actor, groups, is_loading=True, stored=common.get("fp8_history"))
        if common["layout"] != state["layout"]:
            del state["rng"]
        loaded = dist_checkpointing.load(state, str(folder))
        for number, chunk in enumerate(actor.chunks):
            load_module_state(chunk, loaded[f"model{number}"])
        for number, inner in enumerate(actor.optimizer.megatron.chained_optimizers):
            # A stage without experts has nothing to load for the experts' optimizer.
            if inner.get_parameters():
                _load_optimizer(inner, loaded[f"optimizer{number}"])
    actor.optimizer.steps_done = loaded["steps_done"]
    _set_adam_steps(actor.optimizer)
    if "rng" in loaded:
        rng = loaded["rng"]
        set_rng_state(rng["generators"])
        tensor_parallel.get_cuda_rng_tracker().set_states(rng["tracker"])


def _state(
    actor: MegatronActor, groups: Groups, *, is_loading: bool, stored: str | None
) -> dict[str, Any]:
    """The sharded state; with `is_loading` its values are where to load to.

    stored: the recipe whose FP8 history the checkpoint has.
    """
    _make_adam_state(actor.optimizer)
    recipe = history_recipe(actor.chunks[0].config)
    history = recipe is not None and recipe == stored
    # Of the modules, not of their data-parallel wrappers, which prefix every name.
    models = {
        f"model{n}": module_state(chunk, history=history) for n, chunk in enumerate(actor.chunks)
    }
    optimizers = {
        f"optimizer{n}": _optimizer_state(inner, models, is_loading=is_loading)
        for n, inner in enumerate(actor.optimizer.megatron.chained_optimizers)
    }
    rng = {
        "generators": get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    return {
        **models,
        **optimizers,
        "steps_done": actor.optimizer.steps_done,
        "layout": _layout(groups),
        "fp8_history": recipe,
        "distributed_optimizer": _is_distributed(actor.optimizer),
        "rng": ShardedObject("rng", rng, (groups.world_size,), (groups.rank,)),
    }


def _is_distributed(optimizer: Optimizer) -> bool:
    return any(isinstance(x, DistributedOptimizer) for x in optimizer.megatron.chained_optimizers)


def _check_optimizer(optimizer: Optimizer, common: dict[str, Any], folder: str | Path) -> None:
    own = _is_distributed(optimizer)
    if common.get("distributed_optimizer", own) is not own:  # older records do not say
        raise ValueError(
            f"{folder} was written with megatron.distributed_optimizer {not own} and this run has"
            f" {own}; set it to {str(not own).lower()}"
        )


def _layout(groups: Groups) -> list[int]:
    axes = (groups.tp, groups.pp, groups.cp, groups.dp, groups.ep, groups.expert_tp)
    return [axis.size for axis in axes]


def _optimizer_state(inner: Any, models: dict[str, Any], *, is_loading: bool) -> Any:
    if isinstance(inner, DistributedOptimizer):
        # Moments and main weights by parameter: any layout can read them. The rest of this
        # optimizer's state is learning rate and decay, which every step sets anew.
        if not is_loading:
            return state_shards(inner, models)
        return inner.sharded_param_state_fully_reshardable(models, is_loading, metadata={})
    return inner.sharded_state_dict(models, is_loading=is_loading)


def _load_optimizer(inner: Any, state: Any) -> None:
    if isinstance(inner, DistributedOptimizer):
        for values in inner.optimizer.state.values():
            values.pop("step", None)  # what it does not find in `state` it refuses to load
        inner.load_parameter_state_from_fully_reshardable(state)
    else:
        saved, own = (each.get("optimizer", each) for each in (state, inner.state_dict()))
        saved["state"].setdefault("common_step", torch.tensor(0.0))  # left out while it is 0
        # Learning rate and decay, which every step sets anew; with experts a layout may have
        # parameter groups that the saving one had not.
        saved["param_groups"] = own["param_groups"]
        inner.load_state_dict(state)


def _adam_states(optimizer: Optimizer) -> Iterator[tuple[torch.nn.Parameter, dict[str, Any]]]:
    """Every parameter of torch's AdamW with its state."""
    for chained in optimizer.megatron.chained_optimizers:
        if isinstance(chained.optimizer, torch.optim.AdamW):
            for group in chained.optimizer.param_groups:
                for parameter in group["params"]:
                    yield parameter, chained.optimizer.state[parameter]


def _make_adam_state(optimizer: Optimizer) -> None:
    """State as before the first step, where there is none: Adam makes it in that step."""
    for parameter, state in _adam_states(optimizer):
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
    for chained in optimizer.megatron.chained_optimizers:
        if isinstance(chained, DistributedOptimizer) and not chained.optimizer.state:
            for group in chained.optimizer.param_groups:
                group["lr"] = 0.0  # every real step sets it; now a fused Adam must not decay
            chained._init_optimizer_states_with_dummy_values()
            for group in chained.optimizer.param_groups:
                group["step"] = 0


def _set_adam_steps(optimizer: Optimizer) -> None:
    for _, state in _adam_states(optimizer):
        state["step"] = torch.tensor(float(optimizer.steps_done))
    for chained in optimizer.megatron.chained_optimizers:
        if not isinstance(chained.optimizer, torch.optim.AdamW):
            for group in chained.optimizer.param_groups:  # fused Adam counts per group
                group["step"] = optimizer.steps_done
