"""A save that is still copying when the next change of weights or optimizer state comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from herl_megatron.config.schema import AlgorithmConfig
from herl_megatron.megatron.staging import StagingMemory
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.train_case import Case, make_rows, shards_of, start_rank, with_log_probs

pytestmark = pytest.mark.distributed

_SLOW_S = 0.2


class SlowStaging(StagingMemory):
    """Copies when the writer has returned, or after a while if the writer waits for the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.finished = threading.Event()

    def copy(self, tensors: Sequence[torch.Tensor], **more: Any) -> list[torch.Tensor]:
        self.go.wait(_SLOW_S)
        copies = super().copy(tensors, **more)
        self.finished.set()
        return copies


class Between:
    """Stands for the runner: what happens while the reference is in the policy's place."""

    def __init__(self, staging: SlowStaging) -> None:
        self._staging = staging

    def response_log_probs(self, shard: Any, *, temperature: float) -> None:
        self._staging.go.set()
        self._staging.finished.wait(5)


def saves(rank: int, world_size: int, init_method: str, case: Case, folder: str) -> dict[str, str]:
    """By writer, what is wrong with the checkpoint whose copy it met."""
    from herl_megatron.megatron.checkpoint import begin_save, load_checkpoint, save_checkpoint
    from herl_megatron.megatron.parallel import shutdown_parallel

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    (shard,) = shards_of(case, megatron)
    start, weight = Path(folder) / "start", next(actor.chunks[0].parameters())
    start.mkdir()
    save_checkpoint(actor, start, groups=groups)
    actor.train_step(shard)

    def exchange(staging: SlowStaging) -> None:
        runner, actor._reference._runner = actor._reference._runner, Between(staging)
        actor.compute_ref_log_probs(shard)
        actor._reference._runner = runner

    def stranger(staging: SlowStaging) -> None:
        with torch.no_grad():
            weight.mul_(2)

    writers: dict[str, Callable[[SlowStaging], object]] = {
        "step": lambda staging: actor.train_step(shard),
        "sft step": lambda staging: actor.sft_step(shard),
        "reference": exchange,
        "load": lambda staging: load_checkpoint(actor, start, groups=groups),
        "main weight": lambda s: actor.optimizer.set_main_weight(weight, torch.ones(weight.shape)),
        "stranger": stranger,
    }
    found = {}
    for name, write_over in writers.items():
        path = Path(folder) / name
        path.mkdir()
        staging = SlowStaging()
        steps_done, wanted = actor.optimizer.steps_done, [*map(torch.clone, _state(actor))]
        write = begin_save(actor, path, groups=groups, staging=staging)
        write_over(staging)
        staging.go.set()
        write.wait()
        try:
            write.done()
        except AssertionError as error:
            found[name] = str(error)
            continue
        write.finish()
        load_checkpoint(actor, path, groups=groups)
        same = [torch.equal(a, b) for a, b in zip(_state(actor), wanted, strict=True)]
        counted = actor.optimizer.steps_done == steps_done
        found[name] = "" if all(same) and counted else f"{same.count(False)} tensors differ"
    shutdown_parallel()
    return found


def _state(actor: Any) -> list[torch.Tensor]:
    """Weights, main weights, moments and step counts."""
    found = [parameter for chunk in actor.chunks for parameter in chunk.parameters()]
    for chained in actor.optimizer.megatron.chained_optimizers:
        for group in chained.optimizer.param_groups:
            for parameter in group["params"]:
                values = chained.optimizer.state[parameter]
                found += [parameter, *(values[name] for name in sorted(values))]
    return [tensor.detach() for tensor in found]


@pytest.mark.parametrize("distributed_optimizer", [True, False])
def test_the_checkpoint_holds_the_values_from_before(
    tmp_path: Path, distributed_optimizer: bool
) -> None:
    """Whatever changes weights or optimizer state waits: bit for bit nothing of the change is in
    the checkpoint. A change by code that knows nothing of the gate is noticed."""
    torch.set_num_threads(1)
    model = tiny_models.save("qwen2_tied", tmp_path / "hf")
    rows, old, ref = with_log_probs(model, make_rows(4, vocab=tiny_models.VOCAB, seed=6), seed=7)
    case = Case(str(tmp_path / "hf"), rows, old, ref, algorithm=AlgorithmConfig(kl_coef=0.1))
    layout = dict(precision="bf16", reference="host", distributed_optimizer=distributed_optimizer)
    (found,) = run_ranks(saves, 1, replace(case, layout=layout), str(tmp_path))
    noticed = found.pop("stranger")
    assert "1 tensors changed while a checkpoint copied them" in noticed
    assert list(found) == ["step", "sft step", "reference", "load", "main weight"]
    assert set(found.values()) == {""}, found
