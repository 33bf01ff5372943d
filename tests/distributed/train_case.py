"""Optimizer steps of a tiny model on any layout, and the same steps in plain PyTorch.

Shared by the tests of the actor and by `tools/bench/check_layouts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from herl_megatron.algos.objective import PolicyObjective
from herl_megatron.algos.own_loss import open_loss
from herl_megatron.config.schema import (
    AlgorithmConfig,
    HindsightConfig,
    MegatronConfig,
    ModelConfig,
    OptimizerConfig,
)
from herl_megatron.types import FloatArray, TokenRow, TrainRow
from tests.distributed.harness import run_ranks
from tests.limits import HANG_S

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP1 PP1 DP1": {},
    "TP2": dict(tensor_parallel=2),
    "TP2 SP": dict(tensor_parallel=2, sequence_parallel=True),
    "PP2": dict(pipeline_parallel=2),
    "PP2 VPP2": dict(pipeline_parallel=2, virtual_pipeline=2),
    "TP2 PP2": dict(tensor_parallel=2, pipeline_parallel=2),
    "TP2 PP2 SP": dict(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True),
    "DP2": dict(data_parallel=2),
    "TP2 DP2": dict(tensor_parallel=2, data_parallel=2),
    "TP2 DP2 SP": dict(tensor_parallel=2, data_parallel=2, sequence_parallel=True),
    "CP2": dict(context_parallel=2),
    "TP2 CP2": dict(tensor_parallel=2, context_parallel=2),
    "TP2 CP2 SP": dict(tensor_parallel=2, context_parallel=2, sequence_parallel=True),
    "PP2 CP2": dict(pipeline_parallel=2, context_parallel=2),
    "CP2 DP2": dict(context_parallel=2, data_parallel=2),
}


@dataclass(frozen=True, eq=False)
class Case:
    """One run: the layout and everything the loss depends on."""

    folder: str
    rows: tuple[TrainRow, ...]
    old_log_probs: tuple[FloatArray, ...] | None
    ref_log_probs: tuple[FloatArray, ...] | None = None
    layout: dict[str, Any] = field(default_factory=dict)
    algorithm: AlgorithmConfig = AlgorithmConfig()
    hindsight: HindsightConfig = HindsightConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3, eps=1e-4, weight_decay=0.1)
    steps: int = 1
    schedule_steps: tuple[int, ...] | None = None
    """Place in the learning rate's schedule of each step; none counts the steps."""
    sft: bool = False
    temperature: float = 1.0
    log_prob_temperature: float | None = None
    wanted: tuple[str, ...] = ()
    """Besides metrics: `weights`, `log_probs`, `ref_log_probs`, `seconds`."""

    def on(self, **layout: Any) -> Case:
        """The same case on another layout (keys of `megatron`)."""
        return replace(self, layout=layout)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a run returns; arrays in the order of the case's rows, None for rows of weight 0."""

    metrics: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    log_probs: list[Any]
    ref_log_probs: list[Any]
    seconds: list[float]


def run_case(case: Case, limit_s: float = HANG_S) -> Answer:
    """Run the case on its layout's ranks and check that reporting ranks agree."""
    from herl_megatron.batching.shards import gather_rows

    megatron = megatron_config(case)
    results = run_ranks(work, megatron.world_size, case, limit_s=limit_s)
    last = [result for result in results if result["reports"]]
    by_dp = sorted(last, key=lambda result: result["dp_rank"])
    for other in by_dp[1:]:
        assert other["metrics"] == by_dp[0]["metrics"], "DP ranks report different numbers"
    for result in results:
        for step, metrics in enumerate(result["metrics"]):
            assert metrics["grad_norm"] == by_dp[0]["metrics"][step]["grad_norm"]
    shards = shards_of(case, megatron)
    gathered = {
        name: gather_rows(shards, [result[name] for result in by_dp]) if name in case.wanted else []
        for name in ("log_probs", "ref_log_probs")
    }
    weights = {name: t for result in results for name, t in result["weights"].items()}
    return Answer(
        by_dp[0]["metrics"],
        weights,
        gathered["log_probs"],
        gathered["ref_log_probs"],
        by_dp[0]["seconds"],
    )


def megatron_config(case: Case) -> MegatronConfig:
    """The case's `megatron` section; fp32 and small micro-batches unless it says otherwise."""
    return MegatronConfig(
        **{"precision": "fp32", "timeout_s": 60, "micro_batch_tokens": 96, **case.layout}
    )


def shards_of(case: Case, megatron: MegatronConfig) -> list[Any]:
    """One shard per DP rank."""
    from herl_megatron.batching.shards import make_shards

    return make_shards(rows_of(case), megatron=megatron, block_rows=case.algorithm.block_rows)


def rows_of(case: Case) -> list[TokenRow]:
    """The rows as the command has them: without anything that is RL's for a supervised case, else
    with all that is known of their tokens."""
    if case.sft:
        active = [row for row in case.rows if row.in_loss]
        return [
            TokenRow(row.prompt_id, row.context_token_ids, row.response_token_ids) for row in active
        ]
    none = [None] * len(case.rows)
    known = zip(case.rows, case.old_log_probs or none, case.ref_log_probs or none, strict=True)
    return [replace(row, old_log_probs=old, ref_log_probs=ref) for row, old, ref in known]


def build_actor(case: Case, megatron: MegatronConfig, groups: Any) -> Any:
    """The case's actor on this rank."""
    from herl_megatron.megatron.actor import MegatronActor

    return MegatronActor(
        model=ModelConfig(path=case.folder),
        megatron=megatron,
        optimizer=case.optimizer,
        objective=None
        if case.sft
        else PolicyObjective(
            case.algorithm, case.hindsight, case.temperature, open_loss(case.algorithm)
        ),
        total_optimizer_steps=10,
        seed=0,
        groups=groups,
    )


def start_rank(
    rank: int, world_size: int, init_method: str, case: Case
) -> tuple[MegatronConfig, Any, Any]:
    """Join the ranks and build the case's actor: its configuration, groups and actor."""
    from herl_megatron.device import choose_device
    from herl_megatron.megatron.parallel import init_parallel

    megatron = megatron_config(case)
    groups = init_parallel(
        megatron,
        rank=rank,
        world_size=world_size,
        init_method=init_method,
        device=choose_device("cpu"),
        seed=0,
    )
    actor = build_actor(case, megatron, groups)
    return megatron, groups, actor


def work(rank: int, world_size: int, init_method: str, case: Case) -> dict[str, Any]:
    """One rank's run of the case."""
    import time

    from herl_megatron.algos.loss_metrics import combine
    from herl_megatron.megatron.parallel import shutdown_parallel

    megatron, groups, actor = start_rank(rank, world_size, init_method, case)
    shard = shards_of(case, megatron)[groups.dp.rank]
    result: dict[str, Any] = {
        "reports": groups.holds_output and groups.tp.is_first and groups.cp.is_first,
        "dp_rank": groups.dp.rank,
        "metrics": [],
        "seconds": [],
        "weights": {},
    }
    if "log_probs" in case.wanted:
        result["log_probs"] = actor.compute_log_probs(shard, temperature=case.log_prob_temperature)
    for step in range(case.steps):
        start = time.perf_counter()
        place = None if case.schedule_steps is None else case.schedule_steps[step]
        sums = actor.sft_step(shard) if case.sft else actor.train_step(shard, schedule_step=place)
        result["metrics"].append(combine([sums]))
        result["seconds"].append(time.perf_counter() - start)
    if "ref_log_probs" in case.wanted:
        result["ref_log_probs"] = actor.compute_ref_log_probs(shard)
    if "weights" in case.wanted:
        result["weights"] = hf_weights(actor, megatron, groups)
    shutdown_parallel()
    return result


def hf_weights(actor: Any, megatron: MegatronConfig, groups: Any) -> dict[str, torch.Tensor]:
    """Copies of the weights that this rank sends, by Hugging Face name."""
    from herl_megatron.weight_sync.source import WeightSource

    source = WeightSource(
        actor.chunks, actor.architecture, megatron, bucket_bytes=1 << 20, groups=groups
    )
    weights = {}
    for index in range(len(source.plan())):
        for name, tensor in source.gather(index) or ():
            weights[name] = tensor.clone()
    return weights


# ---- rows ------------------------------------------------------------------------------------


def make_rows(
    count: int, *, vocab: int, seed: int, halves: tuple[int, int] = (1, 20), masked: bool = True
) -> tuple[TrainRow, ...]:
    """Rows of random tokens, every fourth a revision and, if `masked`, every seventh of weight 0.

    Context and response lengths are drawn from `range(*halves)`.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        context, response = rng.integers(*halves, 2)
        rows.append(
            TrainRow(
                prompt_id=f"p{index}",
                context_token_ids=rng.integers(0, vocab, context).astype(np.int32),
                response_token_ids=rng.integers(0, vocab, response).astype(np.int32),
                rollout_log_probs=np.zeros(response, np.float32),
                reward=0.0,
                advantage=float(rng.normal()),
                off_policy=index % 4 == 1,
                weight=0.0 if masked and index % 7 == 3 else 1.0,
            )
        )
    return tuple(rows)


@torch.no_grad()
def with_log_probs(
    model: torch.nn.Module, rows: Sequence[TrainRow], *, seed: int
) -> tuple[tuple[TrainRow, ...], tuple[FloatArray, ...], tuple[FloatArray, ...]]:
    """Rows with rollout log-probs near the model's, and old and reference log-probs likewise.

    The noise is large enough for a part of the tokens to be clipped.
    """
    rng = np.random.default_rng(seed)
    made, old, ref = [], [], []
    for row in rows:
        exact = hf_log_probs(model, row)[0].numpy().astype(np.float32)
        noise = rng.normal(0, [[0.5], [0.2], [0.3]], (3, len(exact))).astype(np.float32)
        made.append(replace(row, rollout_log_probs=exact + noise[0]))
        old.append(exact + noise[1])
        ref.append(exact + noise[2])
    return tuple(made), tuple(old), tuple(ref)


# ---- the same in plain PyTorch -----------------------------------------------------------------


def hf_log_probs(
    model: torch.nn.Module, row: TrainRow, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropy at the row's response tokens, `[response]` float64, row by itself."""
    tokens = np.concatenate([row.context_token_ids, row.response_token_ids])
    logits = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    log_p = torch.log_softmax(logits.double() / temperature, -1)[
        len(row.context_token_ids) - 1 : -1
    ]
    targets = torch.from_numpy(row.response_token_ids.astype(np.int64))
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def plain_loss(model: torch.nn.Module, case: Case) -> torch.Tensor:
    """The loss of the case's rows, token by token as the formulas are written."""
    algorithm, hindsight = case.algorithm, case.hindsight
    per_row = []
    for number, row in enumerate(case.rows):
        if row.weight == 0:
            continue
        log_p, entropy = hf_log_probs(model, row, 1.0 if case.sft else case.temperature)
        if case.sft:
            per_row.append(-log_p)
            continue
        assert case.old_log_probs is not None
        old = torch.from_numpy(case.old_log_probs[number]).double()
        terms = []
        for t in range(len(log_p)):
            if row.off_policy:
                mu = {
                    "sampler": math.exp(row.rollout_log_probs[t]),
                    "old": math.exp(old[t]),
                    "one": 1.0,
                }[hindsight.behavior]
                rho = log_p[t].exp() / mu
                term = -row.advantage * rho / (rho + hindsight.gamma)
            else:
                ratio = (log_p[t] - old[t]).exp()
                clipped = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
                gain = torch.minimum(ratio * row.advantage, clipped * row.advantage)
                if row.advantage < 0:
                    gain = gain.clamp(min=algorithm.dual_clip * row.advantage)
                term = -gain
                if algorithm.mismatch_weight:
                    mismatch = math.exp(old[t] - float(row.rollout_log_probs[t]))
                    term = term * min(mismatch, algorithm.mismatch_cap)
            if algorithm.kl_coef:
                assert case.ref_log_probs is not None
                d = float(case.ref_log_probs[number][t]) - log_p[t]
                term = term + algorithm.kl_coef * (d.exp() - d - 1)
            terms.append(term - algorithm.entropy_coef * entropy[t])
        per_row.append(torch.stack([torch.as_tensor(term) for term in terms]))
    if algorithm.aggregation == "token_mean" or case.sft:
        return torch.cat(per_row).mean()
    if algorithm.block_rows:
        size = algorithm.block_rows
        blocks = [per_row[start : start + size] for start in range(0, len(per_row), size)]
        shares = [torch.cat(block).mean() * len(block) / len(per_row) for block in blocks]
        return torch.stack(shares).sum()
    means = algorithm.aggregation == "sequence_mean"
    return torch.stack([row.mean() if means else row.sum() for row in per_row]).mean()


def plain_steps(
    model: torch.nn.Module,
    case: Case,
    loss_of: Callable[[torch.nn.Module, Case], torch.Tensor] = plain_loss,
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms before clipping, and the weights afterwards (`model` is changed)."""
    config = case.optimizer
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )
    losses, norms = [], []
    for _ in range(case.steps):
        adam.zero_grad()
        loss = loss_of(model, case)
        loss.backward()
        limit = config.clip_grad or math.inf
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
        losses.append(loss.item())
        adam.step()
    return losses, norms, {name: p.detach() for name, p in model.state_dict().items()}
