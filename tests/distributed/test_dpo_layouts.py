"""Two DPO steps on any layout equal the same steps in plain PyTorch with the HF model, where both
answers of a pair are in one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herl_megatron.algos.losses_dpo import PairLogProbs, pair_loss
from herl_megatron.config.schema import DPOConfig, OptimizerConfig
from herl_megatron.types import CoefficientRow
from tests.distributed import tiny_models
from tests.distributed.harness import run_ranks
from tests.distributed.train_case import (
    LAYOUTS,
    Case,
    hf_log_probs,
    make_rows,
    megatron_config,
    shards_of,
    start_rank,
)

pytestmark = pytest.mark.distributed

STEPS = 2
LOSSES = {
    "sigmoid": DPOConfig(beta=0.3, label_smoothing=0.1),
    "ipo": DPOConfig(loss="ipo", beta=0.3),
}


def steps_on_rank(
    rank: int, world_size: int, init_method: str, case: Case, reference: Any, config: DPOConfig
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, as the driver (`commands.dpo`) takes them."""
    import torch.distributed as dist

    from herl_megatron.batching.shards import gather_rows, make_shards
    from herl_megatron.megatron.parallel import shutdown_parallel

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    reports = groups.holds_output and groups.tp.is_first and groups.cp.is_first
    results = []
    for _ in range(STEPS):
        shards = shards_of(case, megatron)
        own = actor.compute_log_probs(shards[groups.dp.rank], temperature=1.0)
        told: list[Any] = [None] * world_size
        dist.all_gather_object(told, (groups.dp.rank, own) if reports else None)
        by_dp = dict(answer for answer in told if answer is not None)
        values = gather_rows(shards, [by_dp[dp] for dp in range(len(shards))])
        sums = torch.tensor([float(np.asarray(v, np.float64).sum()) for v in values]).double()
        chosen, rejected = sums.reshape(-1, 2).unbind(1)
        loss = pair_loss(
            PairLogProbs(chosen, rejected, reference[:, 0], reference[:, 1]),
            name=config.loss, beta=config.beta, label_smoothing=config.label_smoothing,
        )  # fmt: skip
        slopes = loss.slopes / len(loss.slopes)
        coefficients = torch.stack([-slopes, slopes], 1).flatten().tolist()
        rows = [
            CoefficientRow(r.prompt_id, r.context_token_ids, r.response_token_ids, c)
            for r, c in zip(case.rows, coefficients, strict=True)
        ]
        weighted = make_shards(rows, megatron=megatron)[groups.dp.rank]
        metrics = actor.coefficient_step(weighted)
        results.append((loss.metrics()["loss"], metrics["grad_norm"]))
    shutdown_parallel()
    return results


def plain(case: Case, reference: torch.Tensor, config: DPOConfig) -> list[tuple[float, float]]:
    """The same in plain PyTorch: the papers' equations, autograd, AdamW."""
    model = tiny_models.build("qwen2_tied")
    options = case.optimizer
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(
        groups, lr=options.lr, betas=(options.beta1, options.beta2), eps=options.eps,
        weight_decay=options.weight_decay,
    )  # fmt: skip
    results = []
    for _ in range(STEPS):
        adam.zero_grad()
        sums = torch.stack([hf_log_probs(model, row)[0].sum() for row in case.rows])
        ratios = sums.reshape(-1, 2) - reference
        h = ratios[:, 0] - ratios[:, 1]
        if config.loss == "ipo":
            losses = (h - 1 / (2 * config.beta)) ** 2
        else:
            p, e = torch.sigmoid(config.beta * h), config.label_smoothing
            losses = -(1 - e) * p.log() - e * (1 - p).log()
        losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad)
        results.append((losses.mean().item(), float(norm)))
        adam.step()
    return results


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, torch.Tensor]:
    """Eight pairs, and a reference near the model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("qwen2_tied")
    model = tiny_models.save("qwen2_tied", Path(folder))
    rows = make_rows(16, vocab=tiny_models.VOCAB, seed=5, masked=False)
    with torch.no_grad():
        sums = torch.stack([hf_log_probs(model, row)[0].sum() for row in rows]).reshape(-1, 2)
    noise = np.random.default_rng(6).normal(0, 2, (8, 2))
    optimizer = OptimizerConfig(lr=1e-4, eps=1e-4, weight_decay=0.1)
    return Case(str(folder), rows, None, optimizer=optimizer), sums + torch.from_numpy(noise)


@pytest.mark.parametrize(
    ("layout", "loss"),
    [
        (LAYOUTS["TP1 PP1 DP1"], "sigmoid"),
        (LAYOUTS["PP2 VPP2"], "sigmoid"),
        (LAYOUTS["TP2 DP2"], "ipo"),
        # A row to a micro-batch: the two of a pair never meet; then packed rows cut in two.
        (dict(data_parallel=2, micro_batch_tokens=1), "sigmoid"),
        (dict(context_parallel=2, packing=True), "sigmoid"),
    ],
    ids=str,
)
def test_steps_equal_plain_pytorch(
    case: tuple[Case, torch.Tensor], layout: dict[str, Any], loss: str
) -> None:
    made, reference = case
    made, config = made.on(**layout), LOSSES[loss]
    ranks = megatron_config(made).world_size
    results = run_ranks(steps_on_rank, ranks, made, reference, config)
    assert all(result == results[0] for result in results)
    wanted = plain(made, reference, config)
    for number, (got, want) in enumerate(zip(results[0], wanted, strict=True)):
        # The second step starts from weights that an optimizer step has changed on both sides.
        assert got == pytest.approx(want, rel=1e-5 if number == 0 else 1e-4)
    assert results[0][1][0] < results[0][0][0]  # and it learns
