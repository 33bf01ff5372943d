"""Converted weights against Megatron's own loader and writer, and as the start of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from herl_megatron.algos.objective import PolicyObjective
from herl_megatron.megatron.convert.conversion import hf_to_megatron, megatron_to_hf
from herl_megatron.megatron.convert.layout import TrainerLayout
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.train_case import Case, hf_weights, make_rows, megatron_config, shards_of

pytestmark = pytest.mark.distributed


def case_of(name: str, folder: Path) -> Case:
    folder.mkdir()
    tiny_models.save(name, folder)
    rows = make_rows(8, vocab=tiny_models.VOCAB, seed=4)
    return Case(str(folder), rows, None)


def work(
    rank: int, world_size: int, init_method: str, case: Case, megatron_path: str, save_to: str
) -> dict[str, Any]:
    """One rank: build the actor (from converted weights if named) and read its first numbers.

    Without `save_to` Megatron's loader then reads the same folder into the model; with it the
    actor takes two steps and Megatron's writer saves the state there.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    from herl_megatron.config.schema import ModelConfig
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.actor import MegatronActor
    from herl_megatron.megatron.checkpoint import save_checkpoint
    from herl_megatron.megatron.parallel import init_parallel, shutdown_parallel

    megatron = megatron_config(case)
    groups = init_parallel(
        megatron, rank=rank, world_size=world_size, init_method=init_method,
        device=choose_device("cpu"), seed=0,
    )  # fmt: skip
    actor = MegatronActor(
        model=ModelConfig(path=case.folder, megatron_path=megatron_path),
        megatron=megatron, optimizer=case.optimizer,
        objective=PolicyObjective(case.algorithm, case.hindsight), total_optimizer_steps=10,
        seed=0, groups=groups,
    )  # fmt: skip
    shard = shards_of(case, megatron)[groups.dp.rank]
    # With TP > 1, a layer of experts asks all EP ranks for equally many tokens (gloo only).
    runs = not (groups.ep.size > 1 and groups.tp.size > 1)
    log_probs = actor.compute_log_probs(shard) if runs else None
    result: dict[str, Any] = {
        "log_probs": None if log_probs is None else [torch.as_tensor(x) for x in log_probs],
        "weights": [p.detach().clone() for c in actor.chunks for p in c.parameters()],
        "main": [
            group["params"][index].detach().clone()
            for chained in actor.optimizer.megatron.chained_optimizers
            for group in chained.optimizer.param_groups
            for index in range(len(group["params"]))
        ],
    }
    if save_to:
        actor.train_step(shard)
        actor.train_step(shard)
        save_checkpoint(actor, save_to, groups=groups)
        result["hf"] = hf_weights(actor, megatron, groups)
    elif megatron_path:
        with torch.no_grad():
            for chunk in actor.chunks:
                for parameter in chunk.parameters():
                    parameter.fill_(float("nan"))
        states = {
            f"model{number}": {
                key: value
                for key, value in chunk.sharded_state_dict().items()
                if not isinstance(value, ShardedObject)  # Transformer Engine's FP8 state: none
            }
            for number, chunk in enumerate(actor.chunks)
        }
        loaded = dist_checkpointing.load(states, megatron_path)
        for number, chunk in enumerate(actor.chunks):
            chunk.load_state_dict(loaded[f"model{number}"], strict=False)
        result["by_megatron"] = [p.detach().clone() for c in actor.chunks for p in c.parameters()]
    shutdown_parallel()
    return result


def run(case: Case, megatron_path: str = "", save_to: str = "") -> list[dict[str, Any]]:
    return run_ranks(work, megatron_config(case).world_size, case, megatron_path, save_to)


def assert_equal(found: list[Any], wanted: list[Any]) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "written_for", "layout"),
    [
        ("qwen2_tied", TrainerLayout(tp=2, pp=2, vpp=2),
         dict(tensor_parallel=2, pipeline_parallel=2, virtual_pipeline=2)),
        ("gemma3_text", TrainerLayout(tp=2), dict(pipeline_parallel=3)),
        ("glm4", TrainerLayout(pp=2), dict(tensor_parallel=2, sequence_parallel=True)),
        ("qwen3", TrainerLayout(tp=4, pp=3), dict(tensor_parallel=2, data_parallel=2)),
        ("qwen3_moe", TrainerLayout(tp=2, ep=4, etp=1),
         dict(tensor_parallel=2, data_parallel=2, expert_parallel=4, expert_tensor_parallel=1,
              sequence_parallel=True)),
        ("qwen3_moe", TrainerLayout(pp=2, ep=4), dict(data_parallel=2, expert_parallel=2)),
    ],
    ids=str,
)  # fmt: skip
def test_run_starts_from_converted_weights(
    name: str, written_for: TrainerLayout, layout: dict[str, Any], tmp_path: Path
) -> None:
    """Our loader and Megatron's bring the same bits as the Hugging Face folder, at the layout that
    the weights were written for and at another; so are the first log-probs."""
    case = case_of(name, tmp_path / "hf").on(**layout)
    hf_to_megatron(tmp_path / "hf", tmp_path / "out", layout=written_for)
    plain, converted = run(case), run(case, str(tmp_path / "out"))
    reported = 0
    for want, got in zip(plain, converted, strict=True):
        assert_equal(got["weights"], want["weights"])
        assert_equal(got["by_megatron"], want["weights"])
        if want["log_probs"] is not None:
            assert_equal(got["log_probs"], want["log_probs"])
            reported += 1
    assert reported > 0 or layout.get("sequence_parallel")


def test_bf16_checkpoint_becomes_a_model_and_a_start(tmp_path: Path) -> None:
    """A bf16 run after two steps: its weights as a Hugging Face folder, its fp32 main weights as
    another, of which the first is the rounding; and a run on another layout starts from both."""
    case = replace(
        case_of("qwen2", tmp_path / "hf"), layout=dict(data_parallel=2, precision="bf16")
    )
    (tmp_path / "save").mkdir()
    trained = run(case, save_to=str(tmp_path / "save"))
    megatron_to_hf(tmp_path / "save", tmp_path / "bf16", hf=tmp_path / "hf")
    megatron_to_hf(tmp_path / "save", tmp_path / "fp32", hf=tmp_path / "hf", dtype=torch.float32)
    found, main = (
        {name: t for file in (tmp_path / part).glob("*.safetensors")
         for name, t in load_file(file).items()}
        for part in ("bf16", "fp32")
    )  # fmt: skip
    wanted = {name: t for result in trained for name, t in result["hf"].items()}
    assert found.keys() == wanted.keys() == main.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor) and main[name].dtype is torch.float32
        assert torch.equal(main[name].bfloat16(), tensor)
    assert any(not torch.equal(main[name], found[name].float()) for name in main)

    other = case.on(tensor_parallel=2, precision="bf16")
    for want, got in zip(
        run(replace(other, folder=str(tmp_path / "fp32"))),
        run(other, str(tmp_path / "save")),
        strict=True,
    ):
        assert_equal(got["main"], want["main"])
        assert_equal(got["weights"], want["weights"])
