"""A loss from outside on every layout: ours written anew, and one over whole responses, whose rows
lie on several context-parallel ranks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from herl_megatron.algos.loss_inputs import TokenRows
from herl_megatron.config.schema import AlgorithmConfig, HindsightConfig
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
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

MODEL = "qwen2_tied"
TOLERANCE = 1e-5
CLIP = 0.06
CP2 = dict(context_parallel=2)


def cut_row(rank: int, world_size: int, init_method: str) -> list[list[float]]:
    """Row 0 is cut: 1, 2 on rank 0 and 3 on rank 1, which holds row 1, 10, as well. Of
    L = sum_t c_t m_t^2 the rank's means and gradient."""
    dist.init_process_group("gloo", rank=rank, world_size=world_size, init_method=init_method)
    values, coefficients, number = [
        ([1.0, 2.0], [1.0, 2.0], [0, 0]),
        ([3.0, 10.0], [3.0, 4.0], [0, 1]),
    ][rank]
    x = torch.tensor(values, requires_grad=True)
    rows = TokenRows(torch.tensor(number), torch.tensor([3, 1]), dist.group.WORLD)
    means = rows.sum(x) / rows.tokens[rows.number]
    (torch.tensor(coefficients) * means**2).sum().backward()
    assert x.grad is not None
    dist.destroy_process_group()
    return [means.tolist(), x.grad.tolist()]


def test_a_row_that_is_cut_has_one_mean_and_its_whole_gradient() -> None:
    """Means 2 and 10; dL/dx of row 0 is (1 + 2 + 3) 2 * 2 / 3 = 8 on both ranks, of row 1
    4 * 2 * 10 = 80."""
    first, second = run_ranks(cut_row, 2)
    assert first == [[2.0, 2.0], [8.0, 8.0]]
    assert second == [[2.0, 10.0], [8.0, 80.0]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(MODEL)
    model = tiny_models.save(MODEL, Path(folder))
    rows, old, _ = with_log_probs(model, make_rows(16, vocab=tiny_models.VOCAB, seed=1), seed=2)
    return Case(str(folder), rows, old, wanted=("weights",))


@pytest.mark.parametrize("layout", ["TP1 PP1 DP1", "TP2 PP2 SP", "CP2 DP2"])
def test_our_clip_from_outside_gives_the_same_bits(base: Case, layout: str) -> None:
    own = replace(base, algorithm=AlgorithmConfig(loss="tests.distributed.own_losses:clip"))
    ours, theirs = (run_case(case.on(**LAYOUTS[layout])) for case in (base, own))
    (expected,), (got,) = ours.metrics, theirs.metrics
    assert expected.pop("clip_fraction") > 0.1 and "clip_fraction" not in got
    assert got == expected
    assert len(ours.weights) > 20
    for name, weight in ours.weights.items():
        assert torch.equal(theirs.weights[name], weight), name


def sequence_case(base: Case, *, aggregation: str, off_policy_loss: str) -> Case:
    algorithm = {
        "loss": "tests.distributed.own_losses:sequence_ratio",
        "loss_options": {"clip": CLIP},
        "aggregation": aggregation,
    }
    return replace(
        base,
        algorithm=AlgorithmConfig.model_validate(algorithm),
        hindsight=HindsightConfig.model_validate({"off_policy_loss": off_policy_loss}),
    )


def plain_sequence_loss(model: torch.nn.Module, case: Case) -> torch.Tensor:
    """The loss of the case's rows in float64, response by response as the formulas are written."""
    assert case.old_log_probs is not None
    values, lengths = [], []
    for number, row in enumerate(case.rows):
        if row.weight == 0:
            continue
        log_p, _ = hf_log_probs(model, row)
        if row.off_policy and case.hindsight.off_policy_loss == "shaped":
            rho = log_p.exp() / torch.from_numpy(row.rollout_log_probs).double().exp()
            values.append((-row.advantage * rho / (rho + case.hindsight.gamma)).mean())
        else:
            old = torch.from_numpy(case.old_log_probs[number]).double()
            ratio = (log_p.sum() / len(log_p) - old.sum() / len(old)).exp()
            gain = ratio * row.advantage
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP) * row.advantage
            values.append(-torch.minimum(gain, clipped))
        lengths.append(float(len(log_p)))
    weights = torch.tensor(lengths if case.algorithm.aggregation == "token_mean" else [1.0])
    return (torch.stack(values) * weights / weights.expand(len(values)).sum()).sum()


@cache
def plain(case: Case) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, gradient norm and the weights after the step, in plain PyTorch."""
    losses, norms, weights = plain_steps(tiny_models.build(MODEL), case, plain_sequence_loss)
    return losses[0], norms[0], weights


@pytest.fixture(scope="module")
def sequences(base: Case) -> dict[str, Case]:
    return {
        "own": sequence_case(base, aggregation="sequence_mean", off_policy_loss="own"),
        "shaped": sequence_case(base, aggregation="token_mean", off_policy_loss="shaped"),
    }


def test_some_responses_are_clipped_and_some_not(base: Case) -> None:
    """Else the tests below would not tell a ratio of rows from another."""
    model = tiny_models.build(MODEL)
    assert base.old_log_probs is not None
    with torch.no_grad():
        ratios = [
            float(np.exp((hf_log_probs(model, row)[0].numpy() - old).mean()))
            for row, old in zip(base.rows, base.old_log_probs, strict=True)
        ]
    beyond = sum(abs(ratio - 1) > CLIP for ratio in ratios)
    assert 3 <= beyond <= len(ratios) - 3


@pytest.mark.parametrize("kind", ["own", "shaped"])
@pytest.mark.parametrize(
    "layout",
    [
        *(LAYOUTS[name] for name in ("TP1 PP1 DP1", "TP2 DP2 SP", "PP2 VPP2", "TP2 CP2 SP")),
        CP2 | dict(pipeline_parallel=2, packing=True),
        CP2 | dict(data_parallel=2, packing=True),
        # Micro-batches of one row: most have no response token on one of the ranks.
        CP2 | dict(micro_batch_tokens=1),
        dict(micro_batch_tokens=1, packing=True),
        dict(micro_batch_tokens=1 << 20),
    ],
    ids=str,
)
def test_a_ratio_of_whole_responses(
    sequences: dict[str, Case], kind: str, layout: dict[str, Any]
) -> None:
    case = sequences[kind]
    loss, norm, weights = plain(case)
    answer = run_case(case.on(**layout))
    (metrics,) = answer.metrics
    assert metrics["loss"] == pytest.approx(loss, rel=TOLERANCE)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=TOLERANCE)
    assert metrics["loss_policy"] + metrics["loss_hindsight"] == pytest.approx(loss, rel=TOLERANCE)
    assert abs(metrics["loss_hindsight"]) > 1e-3
    for name, weight in answer.weights.items():
        torch.testing.assert_close(weight, weights[name].float(), rtol=0, atol=2e-5)


def test_the_whole_grid_at_once(sequences: dict[str, Case]) -> None:
    case = sequences["own"]
    layout = CP2 | dict(tensor_parallel=2, pipeline_parallel=2, packing=True)
    (metrics,) = run_case(replace(case, wanted=()).on(**layout)).metrics
    loss, norm, _ = plain(case)
    assert metrics["loss"] == pytest.approx(loss, rel=TOLERANCE)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=TOLERANCE)
