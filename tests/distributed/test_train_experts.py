"""Training Qwen3-MoE on every layout equals plain PyTorch with the Hugging Face model.

The reference knows nothing of layouts: optimizer steps of `transformers`' model over whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.test_checkpoint import assert_same_bits, merged, run
from tests.distributed.test_train_main_weights import work as main_weights
from tests.distributed.train_case import (
    Case,
    hf_log_probs,
    make_rows,
    plain_steps,
    run_case,
    with_log_probs,
)

pytestmark = pytest.mark.distributed

STEPS = 4
EP2: dict[str, Any] = dict(expert_parallel=2, data_parallel=2)
TP2_EP2 = EP2 | dict(tensor_parallel=2, sequence_parallel=True)
PP2_EP2 = EP2 | dict(pipeline_parallel=2)
TP2_ETP1 = dict(tensor_parallel=2, sequence_parallel=True, expert_tensor_parallel=1)
PLAIN_ADAM: dict[str, Any] = dict(distributed_optimizer=False)


class Expected:
    """A tiny model, its rows, and `STEPS` steps of plain PyTorch."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.set_num_threads(1)
        model = tiny_models.save(name, folder)
        rows = make_rows(8, vocab=tiny_models.VOCAB, seed=1)
        rows, old, ref = with_log_probs(model, rows, seed=2)
        self.case = Case(str(folder), rows, old, ref, steps=2, wanted=("weights", "log_probs"))
        self.start = by_expert(tiny_models.build(name).state_dict())
        self.log_probs = [hf_log_probs(model, row)[0].detach().numpy() for row in rows]
        self.load_max, self.idle = expert_load(model, self.case)
        self.losses, self.norms, _ = plain_steps(model, replace(self.case, steps=STEPS))
        self.end = by_expert(model.state_dict())
        middle = tiny_models.build(name)
        plain_steps(middle, self.case)
        self.middle = by_expert(middle.state_dict())

    def check_numbers(self, metrics: list[dict[str, float]], first: int) -> None:
        """Losses and gradient norms of consecutive steps, the first of them `first`."""
        for step, numbers in enumerate(metrics, start=first):
            assert numbers["loss"] == pytest.approx(self.losses[step], rel=1e-6), step
            assert numbers["grad_norm"] == pytest.approx(self.norms[step], rel=5e-6), step

    def check_weights(
        self, got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]
    ) -> None:
        """The error of each tensor against the way that it has gone."""
        assert got.keys() == want.keys()
        for name, tensor in want.items():
            moved = (tensor - self.start[name]).norm()
            assert (got[name] - tensor).norm() < 1e-4 * moved, name


def by_expert(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies named as on disk: one tensor per expert. In memory transformers fuses a layer's."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if kind == "down_proj":
            found |= {f"{stem}.{i}.{kind}.weight": one.clone() for i, one in enumerate(tensor)}
        elif kind == "gate_up_proj":
            for i, expert in enumerate(tensor):
                for part, values in zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True):
                    found[f"{stem}.{i}.{part}.weight"] = values.clone()
        else:
            found[name] = tensor.clone()
    return found


@torch.no_grad()
def expert_load(model: torch.nn.Module, case: Case) -> tuple[float, float]:
    """Busiest expert's tokens over its layer's mean, and the share of experts without any."""
    counts: list[Any] = []
    for row in case.rows:
        if row.weight > 0:
            ids = np.concatenate([row.context_token_ids, row.response_token_ids]).astype(np.int64)
            scores = model(input_ids=torch.from_numpy(ids)[None], output_router_logits=True)
            chosen = [s.topk(2).indices.flatten() for s in scores.router_logits]
            experts = scores.router_logits[0].shape[-1]
            counts.append(torch.stack([c.bincount(minlength=experts) for c in chosen]).double())
    total = torch.stack(counts).sum(0)
    return (total / total.mean(1, keepdim=True)).max().item(), (total == 0).double().mean().item()


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Four experts of which two are chosen, with probabilities that add up to 1."""
    return Expected("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Eight experts of which the last four never see a token: with EP2 a whole rank's."""
    return Expected("qwen3_moe_idle", tmp_path_factory.mktemp("idle"))


def check(expected: Expected, **layout: Any) -> dict[str, float]:
    """Two steps on the layout; returns the first one's metrics."""
    answer = run_case(expected.case.on(**layout))
    expected.check_numbers(answer.metrics, first=0)
    expected.check_weights(answer.weights, expected.middle)
    for row, got, want in zip(
        expected.case.rows, answer.log_probs, expected.log_probs, strict=True
    ):
        if row.weight > 0:
            np.testing.assert_allclose(got, want, atol=2e-5)
    return answer.metrics[0]


@pytest.mark.parametrize(
    "layout",
    [
        dict(tensor_parallel=2, sequence_parallel=True),
        EP2,
        EP2 | PLAIN_ADAM,
        EP2 | dict(data_parallel=4),
        EP2 | dict(data_parallel=4) | PLAIN_ADAM,
        dict(expert_parallel=2, context_parallel=2),
        TP2_EP2,
        PP2_EP2 | PLAIN_ADAM,
        PP2_EP2 | dict(virtual_pipeline=2),
        PP2_EP2 | dict(recompute="selective"),
        EP2 | dict(recompute="full", packing=True),
        TP2_EP2 | dict(recompute="full", packing=True),
        # Experts over the TP ranks: whole on each, whose gradients are then summed over TP; and one
        # on every rank.
        TP2_ETP1,
        TP2_ETP1 | dict(data_parallel=2, expert_parallel=4) | PLAIN_ADAM,
        # Cut where nothing else is, and across DP and CP.
        dict(data_parallel=2, expert_tensor_parallel=2, pipeline_parallel=2),
        dict(context_parallel=2, data_parallel=2, expert_tensor_parallel=4) | PLAIN_ADAM,
        # Above the budget each row travels alone: DP ranks without one compute a dummy.
        EP2 | dict(micro_batch_tokens=1),
    ],
    ids=str,
)
def test_steps_equal_plain_pytorch(moe: Expected, layout: dict[str, Any]) -> None:
    check(moe, **layout)


@pytest.mark.parametrize(
    "layout",
    [EP2, TP2_EP2 | PLAIN_ADAM, PP2_EP2, PP2_EP2 | PLAIN_ADAM],
    ids=str,
)
def test_ranks_whose_experts_see_no_token(idle: Expected, layout: dict[str, Any]) -> None:
    """And, with two stages, ranks without any expert: the first two layers are dense."""
    metrics = check(idle, **layout)
    assert metrics["experts_idle"] == 0.5


@pytest.mark.parametrize("layout", [{}, PP2_EP2], ids=str)
def test_load_of_experts_is_what_hugging_face_routes(moe: Expected, layout: dict[str, Any]) -> None:
    """Packed, so that there is no padding, which routers see as well."""
    case = replace(moe.case.on(packing=True, **layout), wanted=(), steps=1)
    (metrics,) = run_case(case).metrics
    assert metrics["padding_ratio"] == 1.0
    assert metrics["expert_load_max"] == pytest.approx(moe.load_max, rel=1e-12)
    assert metrics["experts_idle"] == moe.idle


@pytest.mark.parametrize("sharded", [True, False])
def test_bf16_keeps_fp32_main_weights(moe: Expected, sharded: bool) -> None:
    """Computing in bf16 costs a few hundredths; main weights start unrounded, experts' as well."""
    layout = EP2 | dict(precision="bf16", distributed_optimizer=sharded)
    case = moe.case.on(**layout)
    for step, numbers in enumerate(run_case(case).metrics):
        assert numbers["loss"] == pytest.approx(moe.losses[step], rel=0.1)
        assert numbers["grad_norm"] == pytest.approx(moe.norms[step], rel=0.1)
    if not sharded:  # whole on the rank that sends it
        results = run_ranks(main_weights, 2, case)
        found = {name: t for result in results for name, t in result["main"].items()}
        assert found.keys() == moe.start.keys()
        for name, tensor in moe.start.items():
            assert torch.equal(found[name], tensor), name


def test_resume_with_other_expert_parallelism(moe: Expected, tmp_path: Path) -> None:
    """Two steps, a checkpoint, two more elsewhere: as plain PyTorch that never stopped.

    Without Adam's moments, or with those of another expert, the third step would go elsewhere.
    """
    case = replace(moe.case, wanted=())
    folders = {"ep2": tmp_path / "ep2", "single": tmp_path / "single"}
    whole = run(case.on(**EP2), count=STEPS, folder=folders["ep2"], save_after=2)
    run(case, count=2, folder=folders["single"], save_after=2)
    same = run(case.on(**EP2), count=2, folder=folders["ep2"], load=True)
    assert_same_bits(same, whole, skip=2)
    for source, layout in (("ep2", {}), ("ep2", TP2_EP2), ("single", PP2_EP2)):
        resumed = run(case.on(**layout), count=2, folder=folders[source], load=True)
        moe.check_weights(merged(resumed, "weights_loaded"), moe.middle)
        moe.check_numbers(resumed[-1]["metrics"], first=2)
        moe.check_weights(merged(resumed, "weights"), moe.end)


def test_resume_where_a_rank_has_other_optimizers(
    moe: Expected, idle: Expected, tmp_path: Path
) -> None:
    """Megatron keeps one for experts only under EP, and it is empty on a stage without experts."""
    changes: tuple[tuple[Expected, dict[str, Any], dict[str, Any]], ...] = (
        (idle, EP2, PP2_EP2),
        (moe, PLAIN_ADAM, EP2 | PLAIN_ADAM),
    )
    for number, (expected, before, after) in enumerate(changes):
        case, folder = replace(expected.case, wanted=()), tmp_path / f"{number}"
        run(case.on(**before), count=2, folder=folder, save_after=2)
        resumed = run(case.on(**after), count=2, folder=folder, load=True)
        expected.check_numbers(resumed[-1]["metrics"], first=2)
        expected.check_weights(merged(resumed, "weights"), expected.end)
