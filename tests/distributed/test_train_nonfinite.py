"""A loss or gradient that is not finite stops the step, names the rows and changes nothing; a
weight that an optimizer step spoilt is named on every rank, whichever of them holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herl_megatron.config.schema import OptimizerConfig
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.train_case import (
    LAYOUTS,
    Case,
    build_actor,
    hf_weights,
    make_rows,
    megatron_config,
    shards_of,
    start_rank,
    with_log_probs,
)

pytestmark = pytest.mark.distributed

MARKED_TOKEN = 7
"""Its embedding's gradient is made NaN by `spoil_gradient`."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    model = tiny_models.save("qwen2", Path(folder))
    # Token 7 only where a test puts it.
    rows = tuple(
        replace(
            row,
            context_token_ids=np.maximum(row.context_token_ids, MARKED_TOKEN + 1),
            response_token_ids=np.maximum(row.response_token_ids, MARKED_TOKEN + 1),
            weight=1.0,
        )
        for row in make_rows(12, vocab=tiny_models.VOCAB, seed=6)
    )
    rows, old, ref = with_log_probs(model, rows, seed=7)
    return Case(str(folder), rows, old, ref)


def spoil_gradient(chunk: Any) -> None:
    """Make the gradient NaN where a micro-batch holds the marked token; the loss stays finite."""

    def after_embedding(module: Any, arguments: Any, kwargs: Any, output: torch.Tensor) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else arguments[0]
        if output.requires_grad and bool((ids == MARKED_TOKEN).any()):
            output.register_hook(lambda gradient: gradient * float("nan"))

    chunk.embedding.register_forward_hook(after_embedding, with_kwargs=True)


def work(
    rank: int, world_size: int, init_method: str, bad: Case, good: Case, spoil: bool
) -> dict[str, Any]:
    """A bad step, then a good one: the error, and the weights before, between and after."""
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.actor import NonFiniteError
    from herl_megatron.megatron.parallel import init_parallel, shutdown_parallel

    megatron = megatron_config(bad)
    groups = init_parallel(
        megatron,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device=choose_device("cpu"),
        seed=0,
    )
    actor = build_actor(bad, megatron, groups)
    if spoil and groups.pp.is_first:
        spoil_gradient(actor.chunks[0])
    shard = shards_of(bad, megatron)[groups.dp.rank]
    weights = [hf_weights(actor, megatron, groups)]
    with pytest.raises(NonFiniteError) as caught:
        actor.train_step(shard)
    weights.append(hf_weights(actor, megatron, groups))
    metrics = actor.train_step(shards_of(good, megatron)[groups.dp.rank])
    weights.append(hf_weights(actor, megatron, groups))
    shutdown_parallel()
    together = [{shard.rows[row].prompt_id for row in rows} for rows in shard.micro_batches if rows]
    return {
        "message": str(caught.value),
        "weights": weights,
        "micro_batches": together,
        "grad_norm": metrics["grad_norm"],
    }


def check(case: Case, bad: Case, culprit: str, what: str, *, spoil: bool = False) -> None:
    """Every rank's message names exactly the rows that share the culprit's micro-batch."""
    world_size = megatron_config(bad).world_size
    results = run_ranks(work, world_size, bad, case.on(**bad.layout), spoil)
    together = next(
        rows for result in results for rows in result["micro_batches"] if culprit in rows
    )
    assert len(together) < len(case.rows)
    for result in results:
        assert result["message"].startswith(f"the {what} is NaN or infinite")
        named = result["message"].split("of the prompts ")[1].split(";")[0]
        assert set(named.split(", ")) == together
        assert "other micro-batches are finite" in result["message"]
        assert "did not change the weights (all finite, the largest" in result["message"]
        before, between, after = result["weights"]
        for name, weight in before.items():
            assert torch.equal(weight, between[name]), f"{name} changed in the failed step"
        assert not before or any(not torch.equal(before[name], after[name]) for name in before)
        assert 0 < result["grad_norm"] < 100


@pytest.mark.parametrize("layout", ["TP1 PP1 DP1", "PP2 VPP2", "TP2 DP2 SP"])
def test_bad_advantage(case: Case, layout: str) -> None:
    rows = list(case.rows)
    rows[4] = replace(rows[4], advantage=float("nan"))
    check(case, replace(case, rows=tuple(rows)).on(**LAYOUTS[layout]), "p4", "loss")


def test_bad_log_prob(case: Case) -> None:
    """A revision whose recorded log-probs are NaN."""
    rows = list(case.rows)
    assert rows[5].off_policy
    broken = rows[5].rollout_log_probs.copy()
    broken[0] = np.nan
    rows[5] = replace(rows[5], rollout_log_probs=broken)
    check(case, replace(case, rows=tuple(rows)), "p5", "loss")


@pytest.mark.parametrize(
    "layout",
    [
        *(LAYOUTS[name] for name in ("TP1 PP1 DP1", "PP2 VPP2", "TP2 PP2", "DP2")),
        # Every rank would hold the whole sum, NaN included, if gradients were summed to find it.
        dict(data_parallel=2, distributed_optimizer=False),
    ],
    ids=str,
)
def test_bad_gradient(case: Case, layout: dict[str, Any]) -> None:
    rows = list(case.rows)
    marked = rows[2].context_token_ids.copy()
    marked[0] = MARKED_TOKEN
    rows[2] = replace(rows[2], context_token_ids=marked)
    bad = replace(case, rows=tuple(rows)).on(**layout)
    check(case, bad, "p2", "gradient", spoil=True)


def test_every_micro_batch_is_bad(case: Case) -> None:
    """Then no row is to blame; on two DP ranks it takes all of both."""
    rows = tuple(replace(row, advantage=float("nan")) for row in case.rows)
    for result in run_ranks(work, 2, replace(case, rows=rows).on(**LAYOUTS["DP2"]), case, False):
        assert "every micro-batch is, so it is the weights or the loss" in result["message"]


def spoil_weight(rank: int, world_size: int, init_method: str, case: Case) -> dict[str, Any]:
    """An optimizer step that leaves one NaN in what the last rank's optimizer holds."""
    from herl_megatron.megatron.actor import NonFiniteError
    from herl_megatron.megatron.parallel import shutdown_parallel

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    assert actor.weight_report().problem == ""
    step = actor.optimizer.step

    def spoilt(*values: Any, **named: Any) -> Any:
        if rank == world_size - 1:
            held = actor.optimizer.megatron.chained_optimizers[-1].get_parameters()
            held[-1].data.view(-1)[-1] = float("nan")
        return step(*values, **named)

    actor.optimizer.step = spoilt
    with pytest.raises(NonFiniteError) as caught:
        actor.train_step(shards_of(case, megatron)[groups.dp.rank])
    report = actor.weight_report()
    shutdown_parallel()
    return {"message": str(caught.value), "bad": report.bad, "names": report.names}


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("qwen2", LAYOUTS["TP2"]),
        ("qwen2", LAYOUTS["PP2"]),
        # The fp32 main weight of one rank; the bf16 weights that come of it are on both.
        ("qwen2", dict(data_parallel=2, precision="bf16")),
        ("qwen2", dict(data_parallel=2, distributed_optimizer=False)),
        ("qwen3_moe", dict(data_parallel=2, expert_parallel=2)),
    ],
    ids=str,
)
def test_a_spoilt_weight_is_named_on_every_rank(
    case: Case, model: str, layout: dict[str, Any], tmp_path: Path
) -> None:
    tiny_models.save(model, tmp_path)
    results = run_ranks(spoil_weight, 2, replace(case, folder=str(tmp_path)).on(**layout))
    (bad,) = results[-1]["bad"]
    total = len({name for result in results for name in result["names"]})
    for result in results:
        assert result["message"].startswith("after optimizer step 1 (learning rate 0.001, gradient")
        assert f"1 of {total} parameters hold NaN or infinity, first {bad};" in result["message"]


def step_at(rank: int, world_size: int, init_method: str, case: Case) -> Any:
    """The largest weight after a step, or why there is none."""
    from herl_megatron.megatron.actor import NonFiniteError
    from herl_megatron.megatron.parallel import shutdown_parallel

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    try:
        metrics = actor.train_step(shards_of(case, megatron)[groups.dp.rank])
        weights = hf_weights(actor, megatron, groups)
        return metrics["largest_weight"], max(float(w.abs().max()) for w in weights.values())
    except NonFiniteError as error:
        return str(error)
    finally:
        shutdown_parallel()


def test_weights_beyond_any_model(case: Case) -> None:
    """Adam's first step moves every weight by about the learning rate."""
    sane = run_ranks(step_at, 1, replace(case, optimizer=OptimizerConfig(lr=30.0)))
    ((told, found),) = sane
    assert told == found and 25 < found < 35
    (message,) = run_ranks(step_at, 1, replace(case, optimizer=OptimizerConfig(lr=1e30)))
    assert "the largest weight is 1e+30; beyond 1e+06 no model computes anything" in message
