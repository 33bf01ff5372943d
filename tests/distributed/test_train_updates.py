"""Weights after optimizer steps: against torch.optim.AdamW, across layouts, in bf16, and the
learning rate."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from herl_megatron.config.schema import AlgorithmConfig, OptimizerConfig
from tests.distributed import tiny_models
from tests.distributed.train_case import (
    LAYOUTS,
    Case,
    hf_log_probs,
    make_rows,
    plain_steps,
    run_case,
    with_log_probs,
)

pytestmark = pytest.mark.distributed

NAME = "qwen2_tied"
PRESETS = Path(__file__).parents[2] / "configs/presets"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(NAME)
    model = tiny_models.save(NAME, Path(folder))
    rows, old, ref = with_log_probs(model, make_rows(16, vocab=tiny_models.VOCAB, seed=4), seed=5)
    return Case(str(folder), rows, old, ref, wanted=("weights",))


@pytest.fixture(scope="module")
def two_steps(case: Case) -> tuple[Case, list[float], list[float], dict[str, torch.Tensor]]:
    """Two plain AdamW steps with clipping, warm-up and weight decay."""
    optimizer = OptimizerConfig(
        lr=2e-3, warmup_steps=1, eps=1e-4, weight_decay=0.5, clip_grad=0.5, beta1=0.8, beta2=0.9
    )
    two = replace(case, steps=2, optimizer=optimizer)
    return two, *plain_steps(tiny_models.build(NAME), two)


@pytest.mark.parametrize(
    "layout",
    [*(LAYOUTS[name] for name in ("TP1 PP1 DP1", "TP2 SP", "PP2", "PP2 VPP2", "TP2 DP2 SP"))]
    + [
        dict(data_parallel=2, distributed_optimizer=True),
        dict(data_parallel=2, distributed_optimizer=False),
        dict(distributed_optimizer=False, tensor_parallel=2),
    ],
    ids=str,
)
def test_two_steps_of_adamw(two_steps: Any, layout: dict[str, Any]) -> None:
    two, losses, norms, weights = two_steps
    assert min(norms) > two.optimizer.clip_grad, "clipping must be active in this test"
    answer = run_case(two.on(**layout))
    assert [m["loss"] for m in answer.metrics] == pytest.approx(losses, rel=1e-5)
    assert [m["grad_norm"] for m in answer.metrics] == pytest.approx(norms, rel=1e-5)
    start = tiny_models.build(NAME).state_dict()
    assert set(answer.weights) == set(weights) - {"lm_head.weight"}
    for name, got in answer.weights.items():
        moved = (weights[name] - start[name]).norm()
        assert (got - weights[name]).norm() / moved < 2e-4, name


def test_the_released_optimizer(tmp_path: Path) -> None:
    """Two steps with the betas and weight decay of `presets/released.yaml`, against AdamW with
    those and with `herl`'s. Input embeddings of tokens that no row has get no gradient: by hand
    1 - 1e-3 * 0.01 of each is left after a step, and all of it under `herl`."""
    model = tiny_models.save("qwen2", tmp_path)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    half = tiny_models.VOCAB // 2
    rows, old, ref = with_log_probs(model, make_rows(16, vocab=half, seed=4), seed=5)
    case = Case(str(tmp_path), rows, old, ref, wanted=("weights",), steps=2)
    cases = {}
    for name in ("herl", "released"):
        keys = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["optimizer"]
        cases[name] = replace(case, optimizer=OptimizerConfig(**{**keys, "lr": 1e-3}))
    answer = run_case(cases["released"])
    matrix, apart = "model.layers.0.mlp.down_proj.weight", {}
    for name, one in cases.items():
        want = plain_steps(tiny_models.build("qwen2"), one)[2][matrix]
        moved = (want - start[matrix]).norm()
        apart[name] = float((answer.weights[matrix] - want).norm() / moved)
    assert apart["released"] < 2e-4 and apart["herl"] > 2e-3, apart
    embedding = "model.embed_tokens.weight"
    unused = answer.weights[embedding][half:] / start[embedding][half:]
    assert float((unused - (1 - 1e-5) ** 2).abs().max()) < 3e-7


def test_distributed_optimizer_changes_nothing(two_steps: Any) -> None:
    """But the order in which the gradient norm is added up, whose last bit scales the clipping: two
    units in the last place of a weight."""
    two = two_steps[0]
    answers = [
        run_case(two.on(data_parallel=2, distributed_optimizer=sharded))
        for sharded in (True, False)
    ]
    for name, weight in answers[0].weights.items():
        torch.testing.assert_close(weight, answers[1].weights[name], rtol=2.4e-7, atol=1e-7)


def test_recompute_gives_the_same_bits(two_steps: Any) -> None:
    two = two_steps[0]
    answers = [run_case(two.on(recompute=mode)) for mode in ("none", "selective", "full")]
    for other in answers[1:]:
        assert other.metrics == answers[0].metrics
        for name, weight in other.weights.items():
            assert torch.equal(weight, answers[0].weights[name]), name


@pytest.mark.parametrize(
    "layout",
    [dict(), dict(data_parallel=2), dict(tensor_parallel=2, distributed_optimizer=False)],
    ids=str,
)
def test_bf16_keeps_fp32_main_weights(case: Case, tmp_path: Path, layout: dict[str, Any]) -> None:
    """Updates far below bf16's spacing add up in the main weights until the bf16 weights move.

    From weights that bf16 holds exactly, or a single step could carry a main weight over the edge.
    """
    model = tiny_models.build(NAME).bfloat16().float()
    model.save_pretrained(tmp_path)
    many = replace(
        case,
        folder=str(tmp_path),
        steps=12,
        optimizer=OptimizerConfig(lr=3e-4, beta1=0.0, clip_grad=0.0),
    )
    first = model.state_dict()
    exact = run_case(many.on(**layout))
    half = run_case(many.on(precision="bf16", **layout))
    one = run_case(replace(many, steps=1).on(precision="bf16", **layout))
    loss, loss_bf16 = exact.metrics[0]["loss"], half.metrics[0]["loss"]
    assert loss != loss_bf16 and loss_bf16 == pytest.approx(loss, abs=0.02)
    norms = [answer.metrics[0]["grad_norm"] for answer in (half, exact)]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    far, moved = 0, 0
    for name, weight in half.weights.items():
        start = first[name].bfloat16()
        # In [0.25, 0.5) neighbours are 2^-9 apart: one step of 3e-4 is rounded away, and where
        # fp32 went 1.5 * 2^-10 in several steps, bf16 must have moved.
        large = (start.abs() >= 0.26) & (start.abs() < 0.49)
        assert torch.equal(one.weights[name][large], start[large]), name
        went_far = large & ((exact.weights[name] - first[name]).abs() > 1.5 * 2**-10)
        far += int(went_far.sum())
        moved += int((weight != start)[went_far].sum())
    assert far > 200 and moved / far > 0.75, (moved, far)


def test_reference_stays_where_the_policy_started(case: Case) -> None:
    trained = replace(
        case,
        steps=2,
        algorithm=AlgorithmConfig(kl_coef=0.1),
        optimizer=OptimizerConfig(lr=1e-2),
        wanted=("ref_log_probs", "weights"),
    )
    answer = run_case(trained.on(tensor_parallel=2))
    model = tiny_models.build(NAME)
    assert not torch.equal(answer.weights["model.norm.weight"], model.model.norm.weight)
    for row, got in zip(case.rows, answer.ref_log_probs, strict=True):
        if row.weight:
            want = hf_log_probs(model, row)[0].detach().numpy()
            np.testing.assert_allclose(got, want, atol=2e-5)


def test_learning_rate_reaches_adam(case: Case) -> None:
    """With beta1 = beta2 = 0 Adam moves a weight by lr * sign(gradient): the distance tells lr."""
    optimizer = OptimizerConfig(
        lr=1e-3, warmup_steps=2, schedule="linear", beta1=0.0, beta2=0.0, eps=1e-12, clip_grad=0.0
    )
    answer = run_case(replace(case, optimizer=optimizer))
    assert answer.metrics[0]["lr"] == pytest.approx(5e-4)
    start = tiny_models.build(NAME).state_dict()["model.layers.0.self_attn.o_proj.weight"]
    moved = answer.weights["model.layers.0.self_attn.o_proj.weight"] - start
    assert moved.abs().median().item() == pytest.approx(5e-4, rel=1e-3)


def test_learning_rate_of_the_planned_step(case: Case) -> None:
    """Optimizer steps 0, 1 and 3 to 5 were not taken: their learning rates are passed over."""
    optimizer = OptimizerConfig(lr=1e-3, min_lr=0.0, schedule="linear")
    taken = replace(case, optimizer=optimizer, steps=2, schedule_steps=(2, 6))
    answer = run_case(taken.on(data_parallel=2))
    assert [m["lr"] for m in answer.metrics] == pytest.approx([8e-4, 4e-4])  # of 10 planned steps


def test_learning_rate_by_hand() -> None:
    from herl_megatron.megatron.optimizer import learning_rate

    def rates(total_steps: int, steps: list[int], **changes: Any) -> list[float]:
        config = OptimizerConfig.model_validate({"lr": 1.0, "min_lr": 0.2, **changes})
        return [learning_rate(config, step=step, total_steps=total_steps) for step in steps]

    assert rates(10, [0, 5, 50]) == [1.0, 1.0, 1.0]
    assert rates(10, [0, 1, 3, 4, 9], warmup_steps=4) == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear = rates(12, [1, 2, 7, 12, 99], warmup_steps=2, schedule="linear")
    assert linear == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2])
    cosine = rates(8, [0, 2, 4, 8], schedule="cosine")
    assert cosine == pytest.approx([1.0, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2])
    assert rates(2, [0, 1, 2], warmup_steps=5, schedule="cosine") == pytest.approx([0.2, 0.4, 0.6])
